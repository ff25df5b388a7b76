"""Many conversions at once: a matrix of models, recipes and KV lengths, on this machine or on Ray.

ZOO.toml -> cells -> tasks, planned -> what the store lacks -> an engine -> report
"""

from __future__ import annotations

from pathlib import Path

from edgezoo_core import cpus
from edgezoo_core.batch import matrix, tasks
from edgezoo_core.batch.forecast import Circumstances
from edgezoo_core.batch.running import Engine, Outcome, Run
from edgezoo_core.batch.store import Store
from edgezoo_core.compiler import workers
from edgezoo_core.errors import BatchError
from edgezoo_core.planning import costs, resources
from edgezoo_core.types import Progress, silent

__all__ = ["Engine", "Outcome", "Run", "Store", "local_engine", "open_run", "ray_engine"]


def open_run(
    path: Path,
    store: Store,
    *,
    jobs: int | None = None,
    is_here: bool = True,
    is_full: bool = False,
    progress: Progress = silent,
) -> Run:
    """Finds what of a matrix is in the store already, and plans the rest.

    Args:
        path: ZOO.toml.
        store: Where artifacts go.
        jobs: Workers that trace side by side in one task; None takes each task's share of this
            machine's cores.
        is_here: Whether this machine will make it.
        is_full: Whether workers author the modules, so that nothing is found out later.
        progress: Told of each stage.

    Raises:
        BatchError: The matrix is malformed, or the store cannot be read.
    """
    cells = matrix.read(path)
    share = jobs or max(1, cpus.usable() // len(cells))
    run = Run(tasks.prepare(cells, progress), store, share)
    run.look(progress)
    progress("planning")
    output = resources.existing(store.disk)
    speed = costs.probe(output)
    run.plan(Circumstances(output, share, is_here, is_full, speed), progress)
    return run


def local_engine(
    run: Run, *, processes: int | None = None, memory_bytes: int | None = None
) -> Engine:
    """Returns the engine of this machine.

    Args:
        run: What it will be given.
        processes: Tasks at the same time; None takes what cores and memory allow.
        memory_bytes: What all tasks together may take; None takes what is free now.

    Raises:
        BatchError: A task alone takes more than that.
    """
    from edgezoo_core.batch.local import Local

    budget = memory_bytes or workers.available_bytes()
    largest = max(run.left, key=lambda p: p.forecast.peak_memory_bytes)
    peak = largest.forecast.peak_memory_bytes
    if peak > budget:
        raise BatchError(
            f"{largest.task.name} takes {peak / 1e6:.0f} MB of memory, {budget / 1e6:.0f} MB may"
            " be used",
            remedy="pass a smaller --jobs, a larger --memory, or convert on a larger machine",
        )
    return Local(max(1, min(processes or cpus.usable(), budget // peak, len(run.left))))


def ray_engine(run: Run, address: str, *, progress: Progress = silent) -> Engine:
    """Connects to a Ray cluster; see `edgezoo_core.batch.on_ray.OnRay`."""
    from edgezoo_core.batch.on_ray import OnRay

    return OnRay(address, run.left, run.jobs, progress)
