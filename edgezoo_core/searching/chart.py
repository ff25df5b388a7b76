"""Draws what a search found: size against loss, and the point that was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgezoo_core import drawing
from edgezoo_core.searching.promise import Promise
from edgezoo_core.searching.trials import Trial


def draw(
    promise: Promise,
    curve: Sequence[tuple[int, float]],
    trials: Sequence[Trial],
    chosen: Trial,
    path: Path,
) -> None:
    """Writes a PNG.

    Args:
        promise: Its limits are drawn as lines.
        curve: (bytes, mean KL in nats) that the solver expects to be within reach.
        trials: Files that were examined.
        chosen: One of them.
        path: Where to write.

    Raises:
        ArtifactError: It cannot be written.
    """
    figure = drawing.blank(7, 4.5)
    axes = figure.subplots()
    axes.plot(
        [size / 1e6 for size, _ in curve],
        [loss for _, loss in curve],
        label="least loss at each size, expected",
    )
    axes.plot(
        [t.size_bytes / 1e6 for t in trials],
        [t.lost.mean_kl for t in trials],
        "o",
        color="grey",
        label="examined",
    )
    axes.plot([chosen.size_bytes / 1e6], [chosen.lost.mean_kl], "*", markersize=16, label="chosen")
    if promise.max_kl is not None:
        axes.axhline(promise.max_kl, linestyle="--", color="grey", label="promised mean KL")
    if promise.max_bytes is not None:
        axes.axvline(promise.max_bytes / 1e6, linestyle=":", color="grey", label="promised size")
    axes.set(xlabel="size, MB", ylabel="mean KL, nats", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    drawing.save(figure, path)
