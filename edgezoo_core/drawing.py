"""Charts, drawn with matplotlib, which is an extra."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from edgezoo_core import artifact
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


def blank(width: float, height: float) -> Any:
    """Returns an empty figure of matplotlib's, in inches.

    Raises:
        ArtifactError: matplotlib is missing.
    """
    return _figure()(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Writes a figure as PNG.

    Raises:
        ArtifactError: It cannot be written.
    """
    with artifact.writing(path) as (output, _):
        figure.savefig(output, format="png", dpi=150)


def _figure() -> Any:
    try:
        # The figure alone: pyplot would look for a display.
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as e:
        raise ArtifactError(
            "--plot needs matplotlib, which is not installed",
            remedy="run `pip install 'edgezoo-core[plot]'`, or `pip install matplotlib`",
        ) from e
