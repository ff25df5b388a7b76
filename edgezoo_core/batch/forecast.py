"""What a task will probably take, and what is in its way: as `edgezoo plan` says it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgezoo_core import planning
from edgezoo_core.adapter_sources import name_adapters
from edgezoo_core.batch.tasks import Task
from edgezoo_core.planning import Request
from edgezoo_core.planning.costs import Speed
from edgezoo_core.sources import Prospect
from edgezoo_core.types import Progress, silent

#: Memory of a task of which nothing is known but that it runs.
_UNKNOWN_BYTES = 1_500_000_000
#: A verification: the libraries, and the file, mapped once and packed once by the kernels.
_VERIFIER_BYTES, _FILES_HELD = 1_000_000_000, 2
#: What the machine that plans has less of than a node, or more.
_OWN = ("memory", "disk", "output")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a task will probably take; None stands for what cannot be known.

    Attributes:
        peak_memory_bytes: Of all its processes together.
        seconds: On this machine, alone on it, without download and verification.
        download_bytes: What is not here yet; tasks of one source share it.
        artifact_bytes: The .tflite.
        bundle_bytes: The .litertlm; 0 where none is made.
        license: Of the weights.
        is_gated: Whether the hub asks to accept the licence first.
        findings: What it will meet, in words, errors apart.
    """

    peak_memory_bytes: int
    seconds: float | None
    download_bytes: int
    artifact_bytes: int | None
    bundle_bytes: int | None
    license: str
    is_gated: bool
    findings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """A task, and what it will probably take."""

    task: Task
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a task is planned for.

    Attributes:
        output: A folder on the disk that is written here.
        jobs: Workers that trace side by side in one task.
        is_here: Whether it will run on this machine.
        is_full: Whether a worker authors the module, so that nothing is found out later.
        speed: This machine's.
    """

    output: Path
    jobs: int
    is_here: bool
    is_full: bool
    speed: Speed


def forecast(
    task: Task, prospect: Prospect, where: Circumstances, progress: Progress = silent
) -> Planned:
    """Predicts what a task takes.

    Raises:
        EdgezooError: It cannot succeed; the message says why.
    """
    request = Request(
        task.recipe,
        task.shapes,
        where.output,
        force=True,
        family=task.family,
        adapters=name_adapters(task.adapters, progress),
        engine="streaming",
        jobs=where.jobs,
        use_cache=True,
        with_bundle=task.with_bundle,
        calibration=None,
    )
    plan = planning.examine(
        task.target,
        prospect,
        request,
        is_full=where.is_full,
        speed=where.speed,
        progress=progress,
    )
    # Memory is the engine's to judge: it knows how much may be used.
    foreign = ("memory",) if where.is_here else _OWN
    counted = tuple(f for f in plan.findings if f.subject not in foreign)
    planning.refuse(replace(plan, findings=counted))
    peak = plan.peak_memory_bytes or _UNKNOWN_BYTES
    if task.is_verified:
        peak = max(peak, _VERIFIER_BYTES + _FILES_HELD * (plan.artifact_bytes or 0))
    return Planned(
        task,
        Forecast(
            peak,
            plan.seconds,
            plan.download_bytes,
            plan.artifact_bytes,
            plan.bundle_bytes,
            plan.license,
            plan.is_gated,
            tuple(f.message for f in counted),
        ),
    )
