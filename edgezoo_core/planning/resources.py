"""What this machine has: free disk where files go, and free memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgezoo_core.compiler import workers
from edgezoo_core.planning.result import Disk

#: What stands for «the system does not say» (see `workers.available_bytes`).
_UNKNOWN = 1 << 60


def disks(uses: Sequence[tuple[str, Path, int]]) -> tuple[Disk, ...]:
    """Adds up what goes to each file system.

    Args:
        uses: What is written, the folder, which need not be there yet, and its bytes.
    """
    by_device: dict[int, Disk] = {}
    for what, folder, size in uses:
        if not size:
            continue
        there = existing(folder)
        device = there.stat().st_dev
        before = by_device.get(device)
        if before is None:
            usage = shutil.disk_usage(there)
            if not usage.total:  # some virtual file systems do not say
                continue
            before = Disk(str(there), (), 0, usage.free)
        by_device[device] = Disk(
            before.path, (*before.holds, what), before.needed_bytes + size, before.free_bytes
        )
    return tuple(by_device.values())


def existing(folder: Path) -> Path:
    """Returns the nearest folder above, or itself, that is there."""
    folder = folder.expanduser().absolute()
    return next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))


def is_writable(folder: Path) -> bool:
    """Says whether files can be made in a folder, or the folder itself."""
    there = existing(folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def available_memory_bytes() -> int | None:
    """Returns the memory that is free for us; None where the system does not say."""
    free = workers.available_bytes()
    return None if free >= _UNKNOWN else free
