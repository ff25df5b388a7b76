"""A child process that must not outlive its parent."""

from __future__ import annotations

import ctypes
import signal
import sys

#: Linux: the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Lets the kernel end this process with its parent, even in a library that holds the GIL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
