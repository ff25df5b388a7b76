"""The CPUs that this process may use."""

from __future__ import annotations

import os


def usable() -> int:
    """Returns their number; a container or `taskset` may leave fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
