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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from edgezoo_core import checkpoint, tokenizer
from edgezoo_core.runtime import Session
from edgezoo_core.verification import measures, reference, runs, subject
from edgezoo_core.verification.runs import Floats, Passage


@dataclass(frozen=True, slots=True)
class Lost:
    """A file's loss over all passages.

    Attributes:
        positions: Next tokens that were compared.
        mean_kl: In nats.
        top1: Share where the likeliest token is the same.
        perplexity: The file's, of the passages.
        reference_perplexity: The checkpoint's.
    """

    positions: int
    mean_kl: float
    top1: float
    perplexity: float
    reference_perplexity: float


def main() -> None:
    """Compares the files named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--passages", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=257)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    text = (
        options.text.read_text() if options.text else "\n".join(topics[k] for k in sorted(topics))
    )
    passages = spread(options.checkpoint, text, options.passages, options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        forward = reference.by_transformers(
            checkpoint.open_folder(options.checkpoint, str(options.checkpoint))
        )
        right = []
        for passage in passages:
            reference.score(forward, passage, Path(folder))
            right.append(np.array(runs.load(Path(folder)).logits))
        found = {}
        for argument in options.files:
            name, _, path = argument.partition("=")
            found[name] = examine(Path(path), passages, right, Path(folder))
    if options.json:
        print(json.dumps({n: {k: getattr(f, k) for k in f.__slots__} for n, f in found.items()}))
        return
    print("| file | mean KL, nats | top-1 | perplexity |\n| --- | --- | --- | --- |")
    for name, lost in found.items():
        print(f"| {name} | {lost.mean_kl:.4f} | {lost.top1:.1%} | {lost.perplexity:.2f} |")
    print(f"\n{lost.positions} positions; reference perplexity {lost.reference_perplexity:.2f}")


def spread(folder: Path, text: str, count: int, length: int) -> list[Passage]:
    """Returns passages that begin at equal distances in a text, each read token by token."""
    read = tokenizer.load(folder)
    found = []
    for number in range(count):
        part = text[number * len(text) // count :][: 16 * length]
        found.append(Passage(tuple(read.encode(part)[:length]), 1))
    return found


def examine(path: Path, passages: Sequence[Passage], right: Sequence[Floats], folder: Path) -> Lost:
    """Lets a file read the passages and compares its logits with the reference's."""
    losses = []
    with Session(path) as session:
        for passage, logits in zip(passages, right, strict=True):
            subject.score(session, passage, folder)
            got = np.array(runs.load(folder).logits)
            losses.append(measures.loss(logits, got, passage.tokens[1:]))
    weights = [loss.positions for loss in losses]
    return Lost(
        sum(weights),
        float(np.average([loss.mean_kl for loss in losses], weights=weights)),
        float(np.average([loss.top1 for loss in losses], weights=weights)),
        float(np.exp(np.mean([np.log(loss.subject_perplexity) for loss in losses]))),
        float(np.exp(np.mean([np.log(loss.reference_perplexity) for loss in losses]))),
    )


if __name__ == "__main__":
    main()
