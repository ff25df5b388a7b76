"""The engine of one machine: threads of concurrent.futures, each with a process at a time.

Not its process pool: when one process of a pool is killed, as memory runs out say, the pool breaks
and all that runs in it is lost with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from edgezoo_core.batch import making
from edgezoo_core.batch.forecast import Planned
from edgezoo_core.compiler.workers import Brake


class Local:
    """Runs tasks in processes of this machine.

    Args:
        workers: How many at the same time.
    """

    #: Whether a download serves all tasks.
    is_shared_disk = True

    def __init__(self, workers: int) -> None:
        self._brake = Brake()
        self._threads = ThreadPoolExecutor(workers)

    def submit(
        self, stage: str, planned: Planned, request: Mapping[str, Any]
    ) -> Future[dict[str, Any]]:
        """Begins a stage of `making` as soon as a worker is free."""
        if stage == "make":
            request = {**request, "where": "local"}
        return self._threads.submit(making.run, stage, request, self._brake)

    def close(self) -> None:
        """Ends what runs; returns when it is gone."""
        self._brake.pull()
        self._threads.shutdown(cancel_futures=True)
