"""What a piece of work costs: seconds by stage, and memory."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

from edgezoo_core.types import Progress


def peak_memory_bytes() -> int:
    """Returns the largest resident size that this process has had."""
    with suppress(OSError, StopIteration, ValueError):
        # The kernel's ru_maxrss also remembers the process that started this one.
        with Path("/proc/self/status").open(encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Stopwatch:
    """Times the stages that pass through it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._stage: str | None = None
        self._began = time.perf_counter()

    def __call__(self, stage: str) -> None:
        """Ends the current stage and begins the next."""
        self.finish()
        self._stage, self._began = stage, time.perf_counter()
        self._progress(stage)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """So much of the current stage is done."""
        self._progress.advance(done_bytes, total_bytes)

    def finish(self) -> dict[str, float]:
        """Ends the last stage; returns seconds by stage."""
        if self._stage:
            elapsed = time.perf_counter() - self._began
            self._seconds[self._stage] = self._seconds.get(self._stage, 0) + elapsed
            self._stage = None
        return self._seconds
