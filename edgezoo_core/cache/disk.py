"""Files that other processes meddle with at the same time."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path


def children(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """Returns what is in a folder under such names; nothing, if it cannot be read."""
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if names.fullmatch(path.name))
    return []


def is_plain(path: Path) -> bool:
    """Says whether this is a regular file and no link to one."""
    return stat.S_ISREG(path.lstat().st_mode)


def sha256(path: Path) -> str:
    """Returns a file's SHA-256 in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_bytes(path: Path) -> int:
    """Returns the bytes of all files in a folder, or of one file; links are not followed."""
    total = 0
    found = [path, *(Path(at, n) for at, _, names in os.walk(path) for n in names)]
    for file in found:
        with suppress(OSError):  # removed meanwhile
            total += file.lstat().st_size if is_plain(file) else 0
    return total


def delete(path: Path) -> None:
    """Deletes a file or a folder, as far as it can be done."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
