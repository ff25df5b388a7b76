"""The recipe that gives each group its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgezoo_core.recipe import FORMATS
from edgezoo_core.searching.options import Measured
from edgezoo_core.types import Recipe, WeightFormat

Folds = Mapping[str, tuple[int, ...]]


def recipe(
    name: str, groups: Sequence[Measured], formats: Sequence[str], folds: Mapping[str, Folds] = {}
) -> Recipe:
    """Returns a recipe that compensates.

    Args:
        name: Of the recipe.
        groups: Whose formats are chosen.
        formats: Of each group, in order.
        folds: Format -> exponents by place, as calibration found them for it.
    """
    parts: dict[str, WeightFormat | None] = {}
    layers: dict[int, dict[str, WeightFormat | None]] = {}
    chosen: dict[str, tuple[int, ...]] = {}
    for group, fmt in zip(groups, formats, strict=True):
        table = parts if group.layer is None else layers.setdefault(group.layer, {})
        table |= dict.fromkeys(group.parts, FORMATS[fmt])
        known = folds.get(fmt, {})
        chosen |= {place: known[place] for place in group.places if place in known}
    return Recipe(name, None, parts, layers, folds=chosen, is_compensated=True)
