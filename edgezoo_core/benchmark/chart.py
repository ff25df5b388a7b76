"""Draws what a benchmark found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgezoo_core import drawing
from edgezoo_core.benchmark.figures import Line, Report, Spread


def draw(report: Report, path: Path) -> None:
    """Writes a PNG: decode speed and memory against the tokens in the cache.

    Args:
        report: What was measured; bars go from the lowest sample to the highest.
        path: Where to write.

    Raises:
        ArtifactError: It cannot be written.
    """
    figure = drawing.blank(10, 4)
    speed, memory = figure.subplots(1, 2)
    for key, lines in _series(report).items():
        _errorbars(speed, lines, lambda line: line.decode_per_s, 1.0, key)
        _errorbars(memory, lines, lambda line: line.resident_bytes, 1e9, key)
    for axes, label in ((speed, "decode, tokens/s"), (memory, "resident memory, GB")):
        axes.set(xlabel="tokens in the cache", ylabel=label)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    figure.legend(*speed.get_legend_handles_labels(), loc="outside lower center")
    drawing.save(figure, path)


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
