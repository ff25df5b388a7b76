"""What converted files lose against their checkpoint, on the same tokens.

    python benchmarks/quality.py CHECKPOINT plain=a.tflite smoothed=b.tflite

transformers computes the reference in float32; each file reads the same passages in the LiteRT
interpreter, token by token. Without `--text` they are spread over Python's own reference manual,
which comes with Python (`pydoc_data.topics`): no text that edgezoo calibrates on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics

from edgezoo_core import checkpoint, tokenizer
from edgezoo_core.runtime import Session
from edgezoo_core.verification import exam as exams
from edgezoo_core.verification import reference, subject
from edgezoo_core.verification.exam import Lost, Reader
from edgezoo_core.verification.runs import Floats, Passage


@dataclass(frozen=True, slots=True)
class Examined(Lost):
    """A file and its loss over all passages."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Exam:
    """What every file reads, and what is right.

    Attributes:
        passages: Each is read token by token.
        right: The checkpoint's logits behind each token of a passage, float32 [P, V].
    """

    passages: tuple[Passage, ...]
    right: tuple[Floats, ...]


def main() -> None:
    """Compares the files named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    options = parser.parse_args()
    exam = prepare(options)
    found = {}
    for argument in options.files:
        name, _, path = argument.partition("=")
        with litert(Path(path)) as read:
            found[name] = examine(exam, Path(path), read)
    if options.json:
        print(json.dumps({name: asdict(lost) for name, lost in found.items()}))
    else:
        show(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says which checkpoint is right, what is read, and how the result is printed."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--passages", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=257, help="of a passage (%(default)s)")
    parser.add_argument("--json", action="store_true")


def prepare(options: argparse.Namespace) -> Exam:
    """Chooses the passages and lets transformers read them, by the options of `add_arguments`."""
    text = (
        options.text.read_text() if options.text else "\n".join(topics[k] for k in sorted(topics))
    )
    passages = spread(options.checkpoint, text, options.passages, options.tokens)
    forward = reference.by_transformers(
        checkpoint.open_folder(options.checkpoint, str(options.checkpoint))
    )
    right = []
    with tempfile.TemporaryDirectory() as folder:
        for passage in passages:
            reference.score(forward, passage, Path(folder))
            right.append(exams.logits(Path(folder)))
    return Exam(passages, tuple(right))


def spread(folder: Path, text: str, count: int, length: int) -> tuple[Passage, ...]:
    """Returns passages that begin at equal distances in a text, each read token by token."""
    read = tokenizer.load(folder)
    found = []
    for number in range(count):
        part = text[number * len(text) // count :][: 16 * length]
        found.append(Passage(tuple(read.encode(part)[:length]), 1))
    return tuple(found)


@contextmanager
def litert(path: Path) -> Iterator[Reader]:
    """Opens a .tflite in the LiteRT interpreter."""
    with Session(path) as session, tempfile.TemporaryDirectory() as folder:

        def read(passage: Passage) -> Floats:
            subject.score(session, passage, Path(folder))
            return exams.logits(Path(folder))

        yield read


def examine(exam: Exam, path: Path, read: Reader) -> Examined:
    """Lets a file read the passages and compares its logits with the checkpoint's."""
    size = path.stat().st_size
    return Examined(**asdict(exams.examine(exam.passages, exam.right, read)), size_bytes=size)


def show(found: Mapping[str, Examined]) -> None:
    """Prints the table."""
    print("| file | MB | mean KL, nats | top-1 | perplexity |\n| --- | --- | --- | --- | --- |")
    for name, lost in found.items():
        print(
            f"| {name} | {lost.size_bytes / 1e6:.1f} | {lost.mean_kl:.4f} | {lost.top1:.1%}"
            f" | {lost.perplexity:.2f} |"
        )
    first = next(iter(found.values()))  # all read the same
    print(f"\n{first.positions} positions; reference perplexity {first.reference_perplexity:.2f}")


if __name__ == "__main__":
    main()
