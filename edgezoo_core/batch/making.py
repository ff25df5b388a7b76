"""What one process does for one task: see `run`, which starts it, and `STAGES`."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from edgezoo_core import artifact, certificate, sources, zoo
from edgezoo_core.adapter_sources import name_adapters, open_adapters
from edgezoo_core.batch.store import Store
from edgezoo_core.batch.tasks import Task
from edgezoo_core.compiler import versions, workers
from edgezoo_core.errors import BatchError
from edgezoo_core.sources import Source
from edgezoo_core.types import Progress, silent

_PROGRAM = "edgezoo_core.batch"


def run(stage: str, request: Mapping[str, Any], brake: workers.Brake | None = None) -> Any:
    """Carries a stage out in a process of its own, which ends with this one.

    Raises:
        EdgezooError: What is in the way; also if the process died or the brake was pulled.
    """
    (answer,) = workers.run(stage, [request], silent, program=_PROGRAM, brake=brake, asks_hub=True)
    return answer.result


def fetch(progress: Progress, task: Mapping[str, Any]) -> None:
    """Brings a task's checkpoint here."""
    _obtain(Task.from_json(task), progress)


def make(
    progress: Progress, task: Mapping[str, Any], store: str, jobs: int, where: str
) -> dict[str, Any]:
    """Converts, verifies if that is asked for, and publishes; or finds that it was done before.

    Args:
        progress: Told of each stage.
        task: See `edgezoo_core.batch.tasks.Task`.
        store: Its URL.
        jobs: Workers that trace side by side.
        where: Names the node.

    Returns:
        `is_new`, and `record`, as it stands in the store.

    Raises:
        EdgezooError: The task cannot be done here.
    """
    gc.enable()
    asked = Task.from_json(task)
    kept = Store(store)
    if record := kept.find(asked):
        return {"is_new": False, "record": record}
    with kept.scratch() as folder:
        source = _obtain(asked, progress)
        adapters = name_adapters(asked.adapters, progress)
        conversion = zoo.convert_source(
            source,
            recipe=asked.recipe,
            shapes=asked.shapes,
            output=folder,
            adapters=open_adapters(adapters, source, progress) if adapters else None,
            jobs=jobs,
            with_bundle=asked.with_bundle and zoo.has_tokenizer(source.checkpoint.folder),
            progress=progress,
        )
        path = conversion.artifact.path
        manifest: Any = conversion.artifact.manifest
        _refuse_changed(asked, manifest)
        report = certificate.verify(path, progress=progress) if asked.is_verified else None
        files = {"artifact": path, "manifest": artifact.manifest_path(path)}
        if conversion.bundle:
            files["bundle"] = conversion.bundle
        record = kept.publish(
            asked,
            files,
            {
                "seconds": round(sum(conversion.seconds.values()), 3),
                "peak_memory_bytes": max(conversion.peak_memory_bytes.values()),
                "from_cache": list(conversion.from_cache),
                "verification": report.record() if report else None,
                "warnings": list(manifest["config"]["warnings"]),
                "made": {
                    "host": platform.node(),
                    "node": where,
                    "process": os.getpid(),
                    "at": datetime.now(UTC).isoformat(timespec="seconds"),
                },
            },
        )
    return {"is_new": True, "record": record}


STAGES = {"fetch": fetch, "make": make}


def _obtain(task: Task, progress: Progress) -> Source:
    source = sources.obtain(
        task.target,
        revision=task.commit,
        family=task.family,
        card=task.card,
        progress=progress,
    )
    if versions.identity(source.plugin) != task.inputs["versions"]:
        raise BatchError(
            f"{platform.node()} has other versions of edgezoo, {source.plugin.distribution} or"
            " their libraries than the machine that planned",
            remedy="install the same versions on all machines",
        )
    return source


def _refuse_changed(task: Task, manifest: Mapping[str, Any]) -> None:
    """Holds the files of folders, as they were read, against what they were when it was planned."""
    planned = task.inputs["source"]["files"]
    found = {f["name"]: f["sha256"] for f in manifest["checkpoint"]["files"]}
    if planned and planned != found:
        raise BatchError(
            f"{task.target} holds other files than when it was planned",
            remedy="let the folder be the same on all machines, and run the command again",
        )
    for (_, files), record in zip(
        task.inputs["adapters"], manifest.get("adapters", ()), strict=True
    ):
        found = {f["name"]: f["sha256"] for f in record["files"]}
        if isinstance(files, dict) and files != found:
            raise BatchError(
                f"{record['source']} holds other files than when it was planned",
                remedy="let the folder be the same on all machines, and run the command again",
            )
