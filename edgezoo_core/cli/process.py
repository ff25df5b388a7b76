"""The process as a whole: its streams when it starts, the signals that end it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: A supervisor's signals to end: what is in the making is removed, then the process ends.
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def complete_streams() -> None:
    """Points standard streams that are closed at the null device.

    Else the next file that is opened, a model say, would get a stream's number, and with it what
    libraries print there.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end what runs as Ctrl-C does; the exit code is 128 and the number."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # once is enough: cleaning up takes its time
        raise SystemExit(128 + number)

    before: dict[signal.Signals, object] = {}
    if threading.current_thread() is threading.main_thread():
        # What nohup ignores stays ignored.
        ours = [s for s in _ENDING if signal.getsignal(s) == signal.SIG_DFL]
        before = {each: signal.signal(each, end) for each in ours}
    try:
        yield
    finally:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
