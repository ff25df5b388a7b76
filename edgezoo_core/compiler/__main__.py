"""A worker: `python -m edgezoo_core.compiler`, started by `workers`, for one request.

Other packages make workers of their own stages: see `main`.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

from edgezoo_core import errors, parents
from edgezoo_core.errors import DISK_FAULTS, EdgezooError
from edgezoo_core.stopwatch import peak_memory_bytes

#: Stages that read and write the cache, without which a conversion can do.
_KEEPING = ("trace", "skeleton")


class _Parent:
    """The process that asked."""

    def __init__(self) -> None:
        # What libraries print belongs to stderr; answers keep the old stdout.
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)

    def tell(self, **event: Any) -> None:
        """Sends an event: one line of JSON."""
        self._answers.write(json.dumps(event) + "\n")

    def __call__(self, stage: str) -> None:
        """Progress: a stage begins."""
        self.tell(stage=stage)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """Progress in bytes is the parent's own work."""


class _Log(logging.Handler):
    """Hands edgezoo's own log to the parent, which shows what it shows of its own."""

    def __init__(self, parent: _Parent) -> None:
        super().__init__()
        self._parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        self._parent.tell(log=[record.levelno, record.getMessage()])


def main(stages: str = "edgezoo_core.compiler.stages") -> NoReturn:
    """Reads the request, does it, answers, and ends the process.

    Args:
        stages: The module whose `STAGES` says what can be asked for.
    """
    code = _serve(stages)
    sys.stdout.flush()
    sys.stderr.flush()
    # Leaving in order would take the libraries seconds.
    os._exit(code)


def _serve(stages: str) -> int:
    # A worker lives for seconds: looking for garbage among what it imports and traces costs a
    # tenth of them. Stages that hold weights turn it on again.
    gc.disable()
    # Ctrl-C at a terminal reaches all processes; the parent decides and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parents.die_with_parent()
    parent = _Parent()
    request = json.loads(sys.stdin.readline())
    stage = request.pop("stage")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _quiet(parent)
    try:
        # What is slow to import may fail, too.
        result = importlib.import_module(stages).STAGES[stage](parent, **request)
    except EdgezooError as e:
        kind = next(k.__name__ for k in type(e).__mro__ if hasattr(errors, k.__name__))
        parent.tell(error={"kind": kind, "message": e.message, "remedy": e.remedy})
        return 1
    except (OSError, MemoryError) as e:
        told = errors.of_system(e)
        if told is None:
            traceback.print_exc()
            return 1
        is_kept = stage in _KEEPING and isinstance(e, OSError) and _is_below(e, request)
        kind = "CacheError" if is_kept else type(told).__name__
        parent.tell(error={"kind": kind, "message": told.message, "remedy": told.remedy})
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    parent.tell(result=result, peak_memory_bytes=peak_memory_bytes())
    return 0


def _is_below(fault: OSError, request: Mapping[str, Any]) -> bool:
    """Says whether a fault is of the disk, or of a file in the cache's folders."""
    folders = [request[name] for name in ("folder", "trace_folder") if name in request]
    below = any(str(fault.filename).startswith(folder) for folder in folders)
    return below or fault.errno in DISK_FAULTS


def _end_with_parent() -> None:
    # The pipe closes when the parent is gone, however it went: elsewhere than on Linux, and for a
    # parent that was gone before the kernel was asked.
    while sys.stdin.read(1):
        pass
    os._exit(1)


def _quiet(parent: _Parent) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TORCH_LOGS", "-all")
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "0")
    warnings.simplefilter("ignore")
    logger = logging.getLogger("edgezoo_core")
    logger.handlers = [_Log(parent)]
    logger.setLevel(logging.INFO)
    logger.propagate = False


if __name__ == "__main__":
    main()
