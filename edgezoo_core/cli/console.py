"""Progress on stderr, and silence for everybody else."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, TextIO

import click

from edgezoo_core.cli.terminal import tamed
from edgezoo_core.errors import EdgezooError, of_system, plain, tame

#: Lines of the libraries' talk that are shown after a crash.
TAIL_LINES = 30
#: Where there is no spinner, a stage that takes longer says so, and again after as long.
REMINDER_S = 60.0
#: Of less than this no rate is shown: it is over before it can be read.
SHOWN_BYTES = 10_000_000


def show_log(*, verbose: bool) -> None:
    """Sends edgezoo's own log to stderr: warnings, and with `verbose` all that it says."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_TamedFormatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("edgezoo_core")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    logger.propagate = False


@contextmanager
def working(*, verbose: bool) -> Iterator[Stages]:
    """Quiets the libraries while the block runs and gives the progress to report to.

    With `verbose` they may talk.
    """
    with ExitStack() as stack:
        if not verbose:
            stack.enter_context(_quiet())
        show_log(verbose=verbose)  # after the streams are what they stay
        stages = stack.enter_context(Stages(sys.stderr))
        yield stages


class _TamedFormatter(logging.Formatter):
    """Formats a log's line so that a terminal obeys nothing in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        return tame(super().format(record))


class Stages:
    """Shows one stage at a time: a spinner with its time on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage: str | None = None
        self._began = 0.0
        self._first: tuple[float, int] | None = None
        self._spinner: Any = None
        self._advance = ""
        self._reminder: threading.Timer | None = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(is_done=sys.exc_info()[0] is None)

    def __call__(self, stage: str) -> None:
        """Ends the current stage and begins the next."""
        self._close(is_done=True)
        stage = plain(stage)
        if stage.startswith("waiting") and not self._stream.isatty():
            # Told when it begins: nobody should have to guess for minutes.
            click.echo(f"{'':8}  {stage}", file=self._stream)
            return
        self._stage, self._began = stage, time.perf_counter()
        self._first, self._advance = None, ""
        if not self._stream.isatty():
            self._remind_later()
        # Uploads have progress bars of their own, which a spinner would overwrite.
        elif not stage.startswith("uploading"):
            from rich.console import Console

            self._spinner = Console(file=self._stream).status(self)
            self._spinner.start()

    def __rich__(self) -> str:
        """What stands beside the spinner, asked for with every frame of it."""
        from rich.markup import escape

        elapsed = time.perf_counter() - self._began
        return escape(f"{self._stage}  {elapsed:.0f} s{self._advance}")

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """Shows how much of the stage is done, its rate and the time left."""
        if self._spinner is None or total_bytes < SHOWN_BYTES:
            return
        now = time.perf_counter()
        # A download may continue where another process stopped: that was not done now.
        began, before = self._first = self._first or (now, done_bytes)
        rate = (done_bytes - before) / (now - began) if now > began else 0.0
        left = (total_bytes - done_bytes) / rate if rate else 0.0
        self._advance = (
            f"  {done_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB"
            f"  {rate / 1e6:.0f} MB/s  {left:.0f} s left"
        )

    def done(self) -> None:
        """Ends the current stage; what follows is the result."""
        self._close(is_done=True)

    def _remind_later(self) -> None:
        self._reminder = threading.Timer(REMINDER_S, self._remind)
        self._reminder.daemon = True
        self._reminder.start()

    def _remind(self) -> None:
        stage, elapsed = self._stage, time.perf_counter() - self._began
        if self._reminder is None:  # the stage has ended just now
            return
        with suppress(OSError, ValueError):  # the stream may be closed by now
            click.echo(f"{elapsed:6.1f} s  {stage}: still at it", file=self._stream)
            self._remind_later()

    def _close(self, *, is_done: bool) -> None:
        if self._reminder is not None:
            self._reminder.cancel()
            self._reminder = None
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None
        if self._stage is not None:
            end = f"{time.perf_counter() - self._began:6.1f} s" if is_done else "  failed"
            click.echo(f"{end}  {self._stage}", file=self._stream)
            self._stage = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Sends what C++ and third-party Python write to a log that is shown only after a crash."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("TORCH_LOGS", "-all")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_UPDATE_CHECK", "1")
    logging.getLogger().setLevel(logging.CRITICAL)
    atexit.register(_mute)
    with tempfile.TemporaryFile() as log, warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            stack.enter_context(_redirected(name, descriptor, log))
        try:
            yield
        except (EdgezooError, click.ClickException, click.Abort):
            raise
        except Exception as e:
            if not (isinstance(e, OSError | MemoryError) and of_system(e)):
                _show_tail(log)
            raise


def _mute() -> None:
    """Ends stderr with the program's last word: C++ libraries say good-bye when they are freed."""
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


@contextmanager
def _redirected(name: str, descriptor: int, log: IO[bytes]) -> Iterator[None]:
    """Points a file descriptor at the log; Python's own stream keeps its old end."""
    stream: TextIO = getattr(sys, name)
    stream.flush()
    saved = os.dup(descriptor)
    try:
        is_bound = stream.fileno() == descriptor
    except (OSError, ValueError):
        is_bound = False
    if is_bound:
        own = os.fdopen(
            os.dup(saved), "w", encoding=stream.encoding, errors=stream.errors, buffering=1
        )
        setattr(sys, name, tamed(own) if name == "stdout" else own)
    os.dup2(log.fileno(), descriptor)
    try:
        yield
    finally:
        if is_bound:
            getattr(sys, name).close()
            setattr(sys, name, stream)
        os.dup2(saved, descriptor)
        os.close(saved)


def _show_tail(log: IO[bytes]) -> None:
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
    click.echo(tame("\n".join(lines)), err=True)
