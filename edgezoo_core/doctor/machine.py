"""Cores, memory, and the folders that edgezoo writes to."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgezoo_core import cpus
from edgezoo_core.cache import settings
from edgezoo_core.compiler import workers
from edgezoo_core.doctor.finding import Finding
from edgezoo_core.errors import EdgezooError, plain

#: A small model with its float32 file for `verify`.
_LITTLE_DISK_BYTES = 5 * 10**9
#: What one worker and the streaming need.
_LITTLE_MEMORY_BYTES = 2 * 10**9


def examine() -> Iterator[Finding]:
    """Looks at what a conversion uses up."""
    usable, cores = cpus.usable(), os.cpu_count() or 1
    found = f"{usable} usable" + (f" of {cores}" if cores != usable else "")
    yield Finding("ok", "cores", found)
    free = workers.available_bytes()
    jobs = workers.default_jobs()
    if free < _LITTLE_MEMORY_BYTES:
        remedy = "close something, or raise the container's limit; --jobs 1 needs least"
        yield Finding("warning", "memory", f"{free / 1e9:.1f} GB free", remedy)
    else:
        memory = "" if free >= 1 << 62 else f"{free / 1e9:.1f} GB free, "
        yield Finding("ok", "memory", f"{memory}{jobs} workers side by side")
    yield from _folders()


def _folders() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        own = settings.default_root()
        settings.default_limit_bytes()
    except EdgezooError as e:
        yield Finding("error", "cache", e.message, e.remedy)
    else:
        yield _folder("cache", own, settings.REMEDY)
    yield _folder("hub's cache", Path(HF_HUB_CACHE), "set HF_HOME to a folder on another disk")
    yield _folder("this folder", Path.cwd(), "pass --output with another folder")
    temporary = Path(tempfile.gettempdir())
    yield _folder("temporary files", temporary, "set TMPDIR to a folder on another disk")


def _folder(subject: str, folder: Path, remedy: str) -> Finding:
    """Looks at a folder, or at the nearest one that is there, in which it would be made."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    name = plain(str(folder))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("error", subject, f"{name} cannot be written", remedy)
    free = shutil.disk_usage(there).free
    found = f"{name}, {free / 1e9:.1f} GB free"
    if free < _LITTLE_DISK_BYTES:
        return Finding("warning", subject, found, f"free some space, or {remedy}")
    return Finding("ok", subject, found)
