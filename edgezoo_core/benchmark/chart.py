"""Draws what a benchmark found, with matplotlib, which is an extra."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgezoo_core import artifact
from edgezoo_core.benchmark.figures import Line, Report, Spread
from edgezoo_core.errors import ArtifactError


def check(path: Path) -> None:
    """Checks, before anything is measured, that a chart can be drawn there.

    Raises:
        ArtifactError: matplotlib is missing, or the path will not do.
    """
    _figure()
    if path.suffix.lower() != ".png":
        raise ArtifactError(
            f"{path} is no .png", remedy="pass --plot with a name that ends in .png"
        )
    if not path.parent.is_dir():
        raise ArtifactError(f"{path.parent} is no folder", remedy="pass another --plot")


def draw(report: Report, path: Path) -> None:
    """Writes a PNG: decode speed and memory against the tokens in the cache.

    Args:
        report: What was measured; bars go from the lowest sample to the highest.
        path: Where to write.

    Raises:
        ArtifactError: It cannot be written.
    """
    figure = _figure()(figsize=(10, 4), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    for key, lines in _series(report).items():
        _errorbars(speed, lines, lambda line: line.decode_per_s, 1.0, key)
        _errorbars(memory, lines, lambda line: line.resident_bytes, 1e9, key)
    for axes, label in ((speed, "decode, tokens/s"), (memory, "resident memory, GB")):
        axes.set(xlabel="tokens in the cache", ylabel=label)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    figure.legend(*speed.get_legend_handles_labels(), loc="outside lower center")
    with artifact.writing(path) as (output, _):
        figure.savefig(output, format="png", dpi=150)


def _series(report: Report) -> dict[str, list[Line]]:
    """Groups the points by file and threads, in order of context."""
    series: dict[str, list[Line]] = {}
    for line in sorted(report.lines, key=lambda found: found.context):
        name = f"{'AB'[line.subject]}: {report.plan.subjects[line.subject].path.name}"
        series.setdefault(f"{name}, threads: {line.threads}", []).append(line)
    return series


def _errorbars(
    axes: Any, lines: Sequence[Line], value: Callable[[Line], Spread], unit: float, label: str
) -> None:
    found = [value(line) for line in lines]
    axes.errorbar(
        [line.context for line in lines],
        [f.median / unit for f in found],
        yerr=[
            [(f.median - f.low) / unit for f in found],
            [(f.high - f.median) / unit for f in found],
        ],
        marker="o",
        capsize=3,
        label=label.replace("$", r"\$"),  # which would begin a formula
    )


def _figure() -> Any:
    try:
        # The figure alone: pyplot would look for a display.
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as e:
        raise ArtifactError(
            "--plot needs matplotlib, which is not installed",
            remedy="run `pip install 'edgezoo-core[plot]'`, or `pip install matplotlib`",
        ) from e
