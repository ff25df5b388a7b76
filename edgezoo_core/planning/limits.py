"""Whether the machine holds what a conversion takes: memory, the folder of the output, disks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from edgezoo_core.errors import ArtifactError
from edgezoo_core.planning import costs, resources
from edgezoo_core.planning.costs import Work
from edgezoo_core.planning.result import Disk, Finding, Level

#: Of the memory that processes together show, what they surely need: the rest they share.
_UNSHARED = 0.7


def memory(work: Work, needed: int, free: int | None) -> Iterator[Finding]:
    """Finds that memory will not do.

    Args:
        work: What takes it.
        needed: Bytes at the peak.
        free: Bytes; None where the system does not say.
    """
    if free is None or needed <= free:
        return
    alone = max(costs.memory(replace(work, jobs=1)).values())
    if work.engine == "litert":
        remedy = "leave out --engine litert, or take a machine with more memory"
    elif alone <= free and work.jobs > 1:
        remedy = "close other programs, or pass --jobs 1"
    else:
        remedy = "close other programs, or take a machine with more memory"
    message = f"{needed / 1e9:.2f} GB at the peak, {free / 1e9:.2f} GB free"
    level: Level = "error" if _UNSHARED * needed > free else "warning"
    yield Finding(level, "memory", message, remedy)


def output(path: Path) -> Iterator[Finding]:
    """Finds that an output cannot be written where it is asked for."""
    if not resources.is_writable(path.parent):
        message = f"{path.parent} cannot be written"
        yield Finding("error", "output", message, "pass another --output", ArtifactError)


def disks(found: Sequence[Disk]) -> Iterator[Finding]:
    """Finds disks that are too full."""
    for disk in found:
        if disk.needed_bytes > disk.free_bytes:
            yield Finding(
                "error",
                "disk",
                f"{disk.needed_bytes / 1e6:,.1f} MB for {', '.join(disk.holds)} on the disk of"
                f" {disk.path}, {disk.free_bytes / 1e6:,.1f} MB free",
                "free some space, or choose another disk: --output for the file, HF_HOME for"
                " the download",
                ArtifactError,
            )
