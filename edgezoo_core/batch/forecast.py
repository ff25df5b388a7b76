"""What a task will probably take."""

from __future__ import annotations

from dataclasses import dataclass

from edgezoo_core.compiler import workers

#: Memory of the process that leads a conversion, and streams the weights: libraries and rows.
_LEADER_BYTES = 700_000_000


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a task will probably take.

    Attributes:
        peak_memory_bytes: Of all its processes together.
    """

    peak_memory_bytes: int


def forecast(jobs: int) -> Forecast:
    """Predicts what a task takes with this many workers."""
    # The leader streams once the workers are gone, and is light before.
    return Forecast(_LEADER_BYTES + jobs * workers.WORKER_BYTES)
