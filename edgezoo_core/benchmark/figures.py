"""What the samples of a benchmark say."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from edgezoo_core.benchmark.plan import Plan, Point, Trial


@dataclass(frozen=True, slots=True)
class Spread:
    """Samples of one quantity."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a file costs whatever is asked of it.

    Attributes:
        subject: Index of the file.
        threads: Threads.
        load_s: Loading, with what an earlier load has cached.
        before_bytes: Resident before the file is loaded: the interpreter's own libraries.
        resident_bytes: The most that was resident, mapped pages of files included.
        private_bytes: The most that the system could not drop; None where it does not tell.
    """

    subject: int
    threads: int
    load_s: Spread
    before_bytes: Spread
    resident_bytes: Spread
    private_bytes: Spread | None


@dataclass(frozen=True, slots=True)
class Line:
    """How fast a file is at a point.

    Attributes:
        subject: Index of the file.
        threads: Threads.
        point: Where.
        context: Tokens in the cache when decoding begins.
        prefill_per_s: Tokens of the prompt that are read in a second.
        decode_per_s: Tokens of the answer in a second.
        first_token_s: From the prompt to the first token of the answer.
        resident_bytes: The most that was resident meanwhile.
        private_bytes: The most that the system could not drop; None where it does not tell.
    """

    subject: int
    threads: int
    point: Point
    context: int
    prefill_per_s: Spread
    decode_per_s: Spread
    first_token_s: Spread
    resident_bytes: Spread
    private_bytes: Spread | None


@dataclass(frozen=True, slots=True)
class Ratio:
    """The first file's speed divided by the second's, pair by pair: above 1 it is the faster."""

    threads: int
    point: Point
    prefill: Spread
    decode: Spread


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found.

    Attributes:
        plan: What was asked.
        first_loads_s: Loading each file for the first time, with nothing cached.
        costs: By file and threads.
        lines: By file, threads and point.
        ratios: By threads and point, if there are two files.
    """

    plan: Plan
    first_loads_s: tuple[float, ...]
    costs: tuple[Cost, ...]
    lines: tuple[Line, ...]
    ratios: tuple[Ratio, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        files = [
            {
                "path": str(subject.path),
                "engine": subject.engine,
                "prompt_copies": subject.prompt_copies,
                "size_bytes": subject.path.stat().st_size,
                "first_load_s": first_load_s,
            }
            for subject, first_load_s in zip(self.plan.subjects, self.first_loads_s, strict=True)
        ]
        return {
            "files": files,
            "decode_tokens": self.plan.decode,
            "runs": self.plan.runs,
            "costs": [asdict(c) for c in self.costs],
            "points": [asdict(line) for line in self.lines],
            "ratios": [asdict(r) for r in self.ratios],
            "machine": machine(),
        }


def report(asked: Plan, answers: Mapping[Trial, Mapping[str, Any]]) -> Report:
    """Says what the answers of all trials amount to."""
    costs, lines = [], []
    files = range(len(asked.subjects))
    for threads in asked.threads:
        for subject in files:
            found = [answers[Trial(i, threads, subject)] for i in range(1, asked.runs + 1)]
            costs.append(_cost(subject, threads, found))
            for number, point in enumerate(asked.points):
                readings = [answer["points"][number] for answer in found]
                context = asked.subjects[subject].context(point)
                lines.append(_line(subject, threads, point, context, readings))
    first_loads = tuple(answers[Trial(0, asked.threads[0], i)]["load_s"] for i in files)
    return Report(asked, first_loads, tuple(costs), tuple(lines), tuple(_ratios(asked, lines)))


def spread(samples: Sequence[float]) -> Spread:
    """Returns median and extremes of one or more samples."""
    return Spread(statistics.median(samples), min(samples), max(samples), tuple(samples))


def ratio(first: Spread, second: Spread) -> Spread:
    """Returns the quotients of samples that were taken in turn, each pair its own."""
    return spread([a / b for a, b in zip(first.samples, second.samples, strict=True)])


def machine() -> dict[str, Any]:
    """Returns what figures depend on beside the file."""
    names = ("ai-edge-litert", "litert-lm-api", "edgezoo-core")
    found: dict[str, str] = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {n: found[n] for n in names if n in found},
    }


def _cost(subject: int, threads: int, found: Sequence[Mapping[str, Any]]) -> Cost:
    return Cost(
        subject,
        threads,
        load_s=spread([answer["load_s"] for answer in found]),
        before_bytes=spread([answer["before"]["resident"] for answer in found]),
        resident_bytes=spread([answer["peak"]["resident"] for answer in found]),
        private_bytes=_private([answer["peak"] for answer in found]),
    )


def _line(
    subject: int,
    threads: int,
    point: Point,
    context: int,
    readings: Sequence[Mapping[str, Any]],
) -> Line:
    return Line(
        subject,
        threads,
        point,
        context,
        prefill_per_s=spread([r["prefill_per_s"] for r in readings]),
        decode_per_s=spread([r["decode_per_s"] for r in readings]),
        first_token_s=spread([r["first_token_s"] for r in readings]),
        resident_bytes=spread([r["memory"]["resident"] for r in readings]),
        private_bytes=_private([r["memory"] for r in readings]),
    )


def _private(memories: Sequence[Mapping[str, Any]]) -> Spread | None:
    samples = [m["private"] for m in memories]
    return None if None in samples else spread(samples)


def _ratios(asked: Plan, lines: Sequence[Line]) -> Iterator[Ratio]:
    if len(asked.subjects) != 2:
        return
    found = {(line.subject, line.threads, line.point): line for line in lines}
    for threads in asked.threads:
        for point in asked.points:
            first, second = (found[i, threads, point] for i in (0, 1))
            yield Ratio(
                threads,
                point,
                ratio(first.prefill_per_s, second.prefill_per_s),
                ratio(first.decode_per_s, second.decode_per_s),
            )
