"""Locks that a process holds on open files and folders; when it dies, they are free."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress

#: Where locks do not work, what was left for so long has no maker any more.
DAY_S = 24 * 60 * 60


def try_lock(descriptor: int) -> bool | None:
    """Locks an open file or folder if it is free; returns None where that cannot be told."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


def is_abandoned(descriptor: int) -> bool:
    """Says whether nobody holds an open file or folder; a lock on it is then ours.

    Where no lock can tell, its age does.
    """
    is_free = try_lock(descriptor)
    if is_free is None:
        return time.time() - os.fstat(descriptor).st_mtime > DAY_S
    return is_free


def sign(descriptor: int) -> None:
    """Writes into a locked file who holds it, for `holder`."""
    with suppress(OSError):  # it is for information only
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def holder(descriptor: int) -> str:
    """Returns whom a lock file names as its holder: `process 123`, or `another process`."""
    with suppress(OSError, ValueError):
        return f"process {int(os.pread(descriptor, 20, 0))}"
    return "another process"
