"""Starts workers, listens to them, and sees to it that none is left behind.

A worker is a fresh interpreter, never a fork: torch and jax deadlock in a forked child. It gets
its request as the first line of its stdin and answers in lines of JSON on its stdout. The pipe to
its stdin stays open as long as the parent lives; when it closes, the worker ends itself.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from edgezoo_core import cpus, environment, errors
from edgezoo_core.errors import ConversionError, EdgezooError
from edgezoo_core.types import Progress, silent

logger = logging.getLogger(__name__)

#: Memory that one worker takes, for the choice of how many: libraries, and a graph of few layers.
WORKER_BYTES = 800_000_000
#: Lines of a worker's own talk that are shown when it dies.
_TAIL_LINES = 20
#: What workers say: the worker's number, and an event or None at its end.
_Events = queue.SimpleQueue[tuple[int, dict[str, Any] | None]]
_STOPPED: dict[str, Any] = {
    "error": {"kind": "ConversionError", "message": "stopped", "remedy": "run the command again"}
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker gave.

    Attributes:
        result: Plain values.
        peak_memory_bytes: Largest resident size that it had.
    """

    result: Mapping[str, Any]
    peak_memory_bytes: int


def default_jobs() -> int:
    """Returns how many workers the cores and the free memory allow, at least one."""
    return max(1, min(cpus.usable(), available_bytes() // WORKER_BYTES))


class Brake:
    """Ends the workers that other threads of this process wait for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: set[_Events] = set()
        self._is_pulled = False

    def pull(self) -> None:
        """Lets every run raise, those that begin later too."""
        with self._lock:
            self._is_pulled = True
            for events in self._runs:
                events.put((0, _STOPPED))

    @contextmanager
    def holding(self, events: _Events) -> Iterator[None]:
        """Lets `pull` reach the run that reads these events while the block lasts."""
        with self._lock:
            self._runs.add(events)
            if self._is_pulled:
                events.put((0, _STOPPED))
        try:
            yield
        finally:
            with self._lock:
                self._runs.discard(events)


def run(
    stage: str,
    requests: Sequence[Mapping[str, Any]],
    progress: Progress = silent,
    *,
    program: str = "edgezoo_core.compiler",
    brake: Brake | None = None,
    asks_hub: bool = False,
) -> list[Answer]:
    """Runs one worker per request, side by side, and returns their answers in order.

    Args:
        stage: What they do (see `edgezoo_core.compiler.__main__`).
        requests: Plain values, one per worker.
        progress: Told of what the workers begin.
        program: The package whose `__main__` is the worker.
        brake: Ends the workers when another thread pulls it.
        asks_hub: Whether the workers get the hub's token.

    Raises:
        EdgezooError: What a worker raised, or ConversionError for one that died; the others are
            ended.
    """
    events: _Events = queue.SimpleQueue()
    workers: list[_Worker] = []
    answers: list[Answer | None] = [None] * len(requests)
    variables = dict(os.environ) if asks_hub else environment.without_tokens()
    with ExitStack() as stack:
        if brake:
            stack.enter_context(brake.holding(events))
        for number, request in enumerate(requests):
            workers.append(_Worker(program, number, {"stage": stage, **request}, events, variables))
            stack.callback(workers[-1].end)
        running = len(workers)
        said: set[str] = set()
        while running:
            number, event = events.get()
            if event is None:
                running -= 1
                if answers[number] is None:
                    raise workers[number].death()
            elif "stage" in event:
                progress(event["stage"])
            elif "log" in event:
                level, message = event["log"]
                if message not in said:  # workers side by side say the same
                    said.add(message)
                    logger.log(level, "%s", message)
            elif "error" in event:
                raise _error(event["error"])
            else:
                answers[number] = Answer(event["result"], event["peak_memory_bytes"])
    return [a for a in answers if a is not None]


class _Worker:
    """One worker process."""

    def __init__(
        self,
        program: str,
        number: int,
        request: Mapping[str, Any],
        events: _Events,
        variables: Mapping[str, str],
    ) -> None:
        self._talk: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        # -P: a file in the folder where the user happens to be is no module of ours.
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, a package of ours
            [sys.executable, "-P", "-m", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._talk,
            env={
                **variables,
                "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path),  # noqa: PTH100
            },
        )
        self._listener = threading.Thread(target=self._listen, args=(number, events), daemon=True)
        self._listener.start()
        with suppress(BrokenPipeError):  # it died: the listener tells
            stdin: Any = self._process.stdin
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()

    def _listen(self, number: int, events: _Events) -> None:
        stdout: Any = self._process.stdout
        for line in stdout:
            with suppress(ValueError):
                events.put((number, json.loads(line)))
        self._process.wait()
        events.put((number, None))

    def death(self) -> ConversionError:
        """Says why the worker died without an answer."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return ConversionError(
                "a worker was killed, most likely because memory ran out",
                remedy="close other programs, or pass --jobs 1",
            )
        if code in (-signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT):
            return ConversionError(
                f"a worker was ended from outside, by {signal.Signals(-code).name}",
                remedy="run the command once more",
            )
        self._talk.seek(0)
        lines = self._talk.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        if errors.tells_out_of_memory("\n".join(lines)):
            return errors.out_of_memory("a worker")
        if reason := errors.tells_full_disk("\n".join(lines)):
            return ConversionError(
                f"a worker could not write: {reason}",
                remedy="free some space there, or choose another disk",
            )
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return ConversionError(
            f"a worker died {how}; its last words:\n  " + "\n  ".join(lines),
            remedy="report it with these lines and the versions",
        )

    def end(self) -> None:
        """Ends the process if it still runs, and waits until it is gone."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with suppress(OSError):
                    stream.close()
        self._talk.close()


def _error(told: Mapping[str, Any]) -> EdgezooError:
    kind = getattr(errors, told["kind"], ConversionError)
    error: EdgezooError = kind(told["message"], remedy=told["remedy"])
    return error


def available_bytes() -> int:
    """Returns the memory that is free for us: the machine's, and the control group's."""
    free = [1 << 62]
    with suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo", encoding="ascii") as f:  # noqa: PTH123
            line = next(line for line in f if line.startswith("MemAvailable"))
        free.append(1024 * int(line.split()[1]))
    with suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as f:  # noqa: PTH123
            limit = int(f.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as f:  # noqa: PTH123
            free.append(limit - int(f.read()))
    return min(free)
