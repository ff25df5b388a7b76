"""How fast a file is: fresh processes in turn, and what their samples say."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgezoo_core.benchmark.figures import Report, report
from edgezoo_core.benchmark.plan import Plan, Trial, trials
from edgezoo_core.compiler import workers
from edgezoo_core.types import Progress, silent


def run(asked: Plan, progress: Progress = silent) -> Report:
    """Measures.

    Args:
        asked: What (see `plan.plan`).
        progress: Told of each process.

    Raises:
        EdgezooError: A file cannot be loaded, or does not do what was asked of it.
    """
    answers: dict[Trial, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for trial in trials(asked):
            subject = asked.subjects[trial.subject]
            which = f"run {trial.run} of {asked.runs}" if trial.run else "warming up"
            progress(f"{which}: {subject.path.name}, threads: {trial.threads}")
            # One at a time: what shares the machine shares its speed.
            (answer,) = workers.run("bench", [_request(asked, trial, Path(folder))])
            answers[trial] = answer.result
    return report(asked, answers)


def _request(asked: Plan, trial: Trial, folder: Path) -> dict[str, Any]:
    subject = asked.subjects[trial.subject]
    # Packed weights are cached by the file's name: two files may have the same.
    cache = folder / str(trial.subject)
    cache.mkdir(exist_ok=True)
    return {
        "path": str(subject.path.resolve()),
        "engine": subject.engine,
        "threads": trial.threads,
        # Of the first run only the load counts.
        "points": [asdict(p) for p in (asked.points if trial.run else asked.points[:1])],
        "decode": asked.decode,
        "cache": str(cache),
    }
