"""What a benchmark measures, in which order, and whether it fits the files."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgezoo_core import artifact, cpus, decoder
from edgezoo_core.bundle import sections
from edgezoo_core.errors import ArtifactError

Engine = Literal["interpreter", "litert-lm"]

#: Points of a chart, if none are named.
_SPREAD_POINTS = 5


@dataclass(frozen=True, slots=True)
class Point:
    """Where speed is measured.

    Attributes:
        depth: Tokens that are in the cache beforehand.
        prefill: Tokens of the prompt.
    """

    depth: int
    prefill: int


@dataclass(frozen=True, slots=True)
class Subject:
    """A file and what runs it.

    Attributes:
        path: The file.
        engine: What runs it.
        slots: Length of its KV cache, 0 if a bundle does not say.
        prompt_copies: How often its engine reads the prompt. LiteRT-LM 0.18's benchmark fills up
            each piece of a turn to the length of the prompt: where the bundle's metadata puts text
            behind the user's, there are two pieces, and it reports the second.
    """

    path: Path
    engine: Engine
    slots: int
    prompt_copies: int = 1

    def context(self, point: Point) -> int:
        """Returns how many tokens are in the cache when decoding begins."""
        return point.depth + self.prompt_copies * point.prefill


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        subjects: One file, or two that are compared.
        threads: Numbers of threads, each on its own.
        points: Where speed is measured.
        decode: Tokens that are decoded at each point.
        runs: Fresh processes for each file and number of threads.
    """

    subjects: tuple[Subject, ...]
    threads: tuple[int, ...]
    points: tuple[Point, ...]
    decode: int
    runs: int


@dataclass(frozen=True, slots=True)
class Trial:
    """One process: file `subject` with so many threads; of run 0 only the load counts."""

    run: int
    threads: int
    subject: int


def plan(
    files: Sequence[Path],
    *,
    threads: Sequence[int] = (),
    prefill: Sequence[int] = (128,),
    depth: Sequence[int] | None = (0,),
    decode: int = 64,
    runs: int = 5,
    engine: Engine | None = None,
) -> Plan:
    """Checks that all that is asked for fits the files.

    Args:
        files: One file, or two to compare.
        threads: Numbers of threads; by default, as many as cores.
        prefill: Lengths of prompts.
        depth: Tokens in the cache before the prompt, each combined with each length. None spreads
            a few over the cache: LiteRT-LM, which begins with an empty one, gets longer prompts.
        decode: Tokens to decode.
        runs: Processes for each file and number of threads.
        engine: What runs the files; by default, LiteRT-LM for bundles, else the interpreter.

    Raises:
        ArtifactError: A file is not what its engine runs, or its KV cache is too short.
    """
    subjects = tuple(_subject(path, engine) for path in files)
    if depth is None:
        points = _spread_out(subjects, min(prefill), decode)
    else:
        points = tuple(Point(d, p) for d in dict.fromkeys(depth) for p in dict.fromkeys(prefill))
    for subject in subjects:
        _check(subject, points, decode)
    counts = tuple(dict.fromkeys(threads)) or (cpus.usable(),)
    return Plan(subjects, counts, points, decode, runs)


def trials(asked: Plan) -> Iterator[Trial]:
    """Yields the processes in order: files take turns, so that both see the same machine."""
    # Run 0 fills caches: the system's of the file, and that of packed weights.
    for run in range(asked.runs + 1):
        for threads in asked.threads if run else asked.threads[:1]:
            for subject in range(len(asked.subjects)):
                yield Trial(run, threads, subject)


def _subject(path: Path, engine: Engine | None) -> Subject:
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", remedy="check the path")
    is_bundle = sections.is_bundle(path)
    chosen: Engine = engine or ("litert-lm" if is_bundle else "interpreter")
    if chosen == "interpreter" and is_bundle:
        raise ArtifactError(
            f"{path} is a bundle, which the interpreter does not run",
            remedy="name the .tflite that it was made of, or pass --engine litert-lm",
        )
    if chosen == "litert-lm":
        if not is_bundle:
            raise ArtifactError(
                f"{path} is no bundle, and LiteRT-LM runs nothing else",
                remedy=f"run `edgezoo bundle {path}`, and name what comes out",
            )
        if importlib.util.find_spec("litert_lm") is None:
            raise ArtifactError("LiteRT-LM is not installed", remedy="run `pip install litert-lm`")
        return _bundle(path)
    return Subject(path, chosen, decoder.read(artifact.read(path)).cache.capacity)


def _bundle(path: Path) -> Subject:
    message = sections.open_bundle(path).message(sections.LLM_METADATA)
    if message is None:
        return Subject(path, "litert-lm", 0)
    templates = message.prompt_templates
    is_in_two = bool(templates.user.suffix + templates.model.prefix)
    return Subject(path, "litert-lm", message.max_num_tokens, 2 if is_in_two else 1)


def _check(subject: Subject, points: Sequence[Point], decode: int) -> None:
    if subject.engine == "litert-lm" and any(p.depth for p in points):
        raise ArtifactError(
            "LiteRT-LM's benchmark begins with an empty cache",
            remedy="pass a longer --prefill instead of --depth, or measure the .tflite",
        )
    longest = max(points, key=subject.context)
    needed = subject.context(longest) + decode
    if subject.slots and needed > subject.slots:
        twice = ", which LiteRT-LM's benchmark reads twice," if subject.prompt_copies > 1 else ""
        raise ArtifactError(
            f"{subject.path} has a KV cache of {subject.slots}; {longest.depth} tokens in it,"
            f" {longest.prefill} of the prompt{twice} and {decode} of the answer need {needed}",
            remedy="pass a smaller --depth, --prefill or --decode",
        )


def _spread_out(subjects: Sequence[Subject], prefill: int, decode: int) -> tuple[Point, ...]:
    """Spreads points over what all files have room for."""
    begins_empty = any(subject.engine == "litert-lm" for subject in subjects)
    longest = min((s.slots - decode) // s.prompt_copies for s in subjects)
    step = max(longest - prefill, 0) / (_SPREAD_POINTS - 1)
    lengths = dict.fromkeys(prefill + int(i * step) for i in range(_SPREAD_POINTS))
    return tuple(Point(0, n) if begins_empty else Point(n - prefill, prefill) for n in lengths)
