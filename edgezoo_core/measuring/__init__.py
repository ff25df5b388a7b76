"""What a fresh process measures for a benchmark: loading, prefill, decode, memory.

The numbers of one process are one sample of each; `benchmark` repeats and compares.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgezoo_core.stopwatch import peak_memory_bytes

#: Prefill and decode in tokens a second, seconds to the first token.
Figures = tuple[float, float, float]

#: Seconds between two looks at the memory.
_INTERVAL_S = 0.05


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process holds, in bytes.

    Attributes:
        resident: All of it, the mapped pages of files included, which the system may drop.
        private: What it cannot drop: the KV cache, packed weights, libraries' own data. None where
            the system does not tell.
    """

    resident: int
    private: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """One sample of a point.

    Attributes:
        prefill_per_s: Tokens of the prompt that are read in a second.
        decode_per_s: Tokens of the answer in a second.
        first_token_s: From the prompt to the first token of the answer.
        memory: The most that was held meanwhile.
    """

    prefill_per_s: float
    decode_per_s: float
    first_token_s: float
    memory: Memory


class MemoryWatch:
    """Notes the most memory that the process held, by looking again and again."""

    def __init__(self) -> None:
        self.peak = now()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Looks until the block ends."""
        self.peak = now()
        done = threading.Event()

        def look() -> None:
            while not done.wait(_INTERVAL_S):
                self._note()

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._note()

    def _note(self) -> None:
        seen = now()
        private = max(self.peak.private or 0, seen.private or 0) or None
        self.peak = Memory(max(self.peak.resident, seen.resident), private)


def now() -> Memory:
    """Returns what this process holds now; its peak where the system tells nothing else."""
    with suppress(OSError, KeyError, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        sizes = {n: v for n, _, v in (line.partition(":") for line in lines)}

        def size(name: str) -> int:
            return 1024 * int(sizes[name].split()[0])

        return Memory(size("VmRSS"), size("RssAnon") + size("RssShmem"))
    return Memory(peak_memory_bytes(), None)


def readings(
    points: Sequence[Mapping[str, int]],
    measure: Callable[[int, int], Figures],
    load_s: float,
    before: Memory,
) -> dict[str, Any]:
    """Measures all points, and returns one process's samples.

    Args:
        points: `depth`, tokens in the cache beforehand, and `prefill`, tokens of the prompt.
        measure: Measures one, of depth and prefill.
        load_s: What loading took.
        before: What was held before.
    """
    watch = MemoryWatch()
    found = []
    for point in points:
        with watch.watching():
            figures = measure(point["depth"], point["prefill"])
        found.append(asdict(Reading(*figures, watch.peak)))
    private = [r["memory"]["private"] for r in found]
    return {
        "load_s": load_s,
        "before": asdict(before),
        "peak": asdict(Memory(peak_memory_bytes(), max(private) if all(private) else None)),
        "points": found,
    }
