"""What became of a matrix: as plain values, and as an HTML page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import edgezoo_core
from edgezoo_core.batch.running import Outcome, Run
from edgezoo_core.batch.tasks import Task

#: Version of the report's layout.
SCHEMA = 1


def to_json(run: Run) -> dict[str, Any]:
    """Returns the report: what the matrix asked for, and what became of each cell."""
    tasks = {task.name: task for task in run.matrix.tasks}
    cells = [_cell(outcome, tasks.get(outcome.name)) for outcome in run.all()]
    return {
        "schema": SCHEMA,
        "edgezoo": edgezoo_core.__version__,
        "store": run.store.url,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "interrupted": run.is_interrupted,
        "states": dict(Counter(cell["state"] for cell in cells)),
        "cells": cells,
    }


def plan_to_json(run: Run) -> dict[str, Any]:
    """Returns what is there, what is to be made, and what that will probably take."""
    tasks = {task.name: task for task in run.matrix.tasks}
    planned = {p.task.name: p for p in run.left}
    cells = [
        {
            **_named(outcome, tasks.get(outcome.name)),
            "forecast": asdict(planned[outcome.name].forecast) if outcome.name in planned else None,
        }
        for outcome in run.all()
    ]
    downloads = {p.task.source: p.forecast.download_bytes for p in run.left}
    return {
        "schema": SCHEMA,
        "store": run.store.url,
        "jobs": run.jobs,
        "download_bytes": sum(downloads.values()),
        "cells": cells,
    }


def to_html(report: Mapping[str, Any]) -> str:
    """Returns the page of a report: complete in itself, no scripts, nothing from elsewhere."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    largest = max(
        (c["files"]["artifact"]["size_bytes"] for c in report["cells"] if c["files"]), default=1
    )
    return environment.get_template("report.html.jinja").render(report=report, largest=largest)


def keep(run: Run, report: Mapping[str, Any]) -> None:
    """Puts `report.json` and `report.html` into the store.

    Raises:
        BatchError: It cannot be written.
    """
    run.store.write("report.json", json.dumps(report, indent=2) + "\n")
    run.store.write("report.html", to_html(report))


def rows(report: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """Returns the table: name, state, MB of file and bundle, seconds, peak memory, verdict."""
    return [
        (
            cell["name"],
            cell["state"],
            _number(cell["files"].get("artifact", {}).get("size_bytes"), 1e6, 1),
            _number(cell["files"].get("bundle", {}).get("size_bytes"), 1e6, 1),
            _number(cell["seconds"], 1, 1),
            _number(cell["peak_memory_bytes"], 1e9, 2),
            cell["verdict"] or "",
        )
        for cell in report["cells"]
    ]


def plan_rows(plan: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """Returns the table of a plan: name, what becomes of it, MB, seconds, peak memory."""
    rows: list[tuple[str, ...]] = []
    for cell in plan["cells"]:
        state = "to be made" if cell["state"] == "not done" else cell["state"]
        told = cell["forecast"] or {}
        rows.append(
            (
                cell["name"],
                state,
                _number(told.get("artifact_bytes"), 1e6, 1),
                _number(told.get("bundle_bytes") or None, 1e6, 1),
                _number(told.get("seconds"), 1, 0),
                _number(told.get("peak_memory_bytes"), 1e9, 2),
            )
        )
    return rows


PLAN_HEADER = ("CELL", "STATE", "FILE MB", "BUNDLE MB", "SECONDS", "PEAK GB")
HEADER = ("CELL", "STATE", "FILE MB", "BUNDLE MB", "SECONDS", "PEAK GB", "CERTIFICATE")


def _number(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _cell(outcome: Outcome, task: Task | None) -> dict[str, Any]:
    record = outcome.record or {}
    verification = record.get("verification")
    return {
        **_named(outcome, task),
        "files": record.get("files", {}),
        "seconds": record.get("seconds"),
        "peak_memory_bytes": record.get("peak_memory_bytes"),
        "from_cache": record.get("from_cache", []),
        "warnings": record.get("warnings", []),
        "verdict": _verdict(verification),
        "mean_kl": verification["outputs"]["loss"]["mean_kl"] if verification else None,
        "made": record.get("made"),
    }


def _named(outcome: Outcome, task: Task | None) -> dict[str, Any]:
    error = outcome.error
    source = f"@{task.commit}" if task and task.commit else ""
    return {
        "name": outcome.name,
        "state": outcome.state,
        "model": f"{task.target}{source}" if task else None,
        "recipe": task.recipe.name if task else None,
        "options": task.inputs["options"] if task else None,
        "error": {"message": error.message, "remedy": error.remedy} if error else None,
    }


def _verdict(verification: Mapping[str, Any] | None) -> str | None:
    if verification is None:
        return None
    return "passes" if verification["passes"] else "FAILS"
