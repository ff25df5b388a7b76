"""What a worker is asked to do, as plain values that pass between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgezoo_core import folds
from edgezoo_core.recipe import FORMATS
from edgezoo_core.shapes import Shapes, SignatureOptions
from edgezoo_core.types import Model, Recipe, WeightFormat

#: Files of a trace and of a skeleton in the cache.
TRACE, HEAD, PROGRAM = "trace.json", "head.bin", "program.json"


@dataclass(frozen=True, slots=True)
class Job:
    """All that shapes a file but the values of its weights.

    Attributes:
        model: What is being converted.
        config: config.json, or what stands in for it.
        folder: Where the checkpoint is.
        base: The card's shapes, or the core's.
        shapes: Those that the user named.
        recipe: What the user asked for.
    """

    model: Model
    config: Mapping[str, Any]
    folder: Path
    base: SignatureOptions
    shapes: Shapes
    recipe: Recipe

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "model": asdict(self.model),
            "config": dict(self.config),
            "folder": str(self.folder),
            "base": asdict(self.base),
            "shapes": asdict(self.shapes),
            "recipe": recipe_to_json(self.recipe),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Job:
        """Reads what `to_json` wrote."""
        return cls(
            Model(**value["model"]),
            value["config"],
            Path(value["folder"]),
            SignatureOptions(**value["base"]),
            Shapes(**value["shapes"]),
            recipe_from_json(value["recipe"]),
        )


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """Returns a recipe as plain values."""
    told = formats_to_json(recipe)
    if recipe.is_smoothed:
        told["is_smoothed"] = True
    if recipe.is_compensated:
        told["is_compensated"] = True
    if recipe.folds:
        told["folds"] = {place: folds.spell(k) for place, k in recipe.folds.items()}
    return told


def formats_to_json(recipe: Recipe) -> dict[str, Any]:
    """Returns what of a recipe shapes a graph: formats by name."""
    return {
        "name": recipe.name,
        "default": format_name(recipe.default),
        "parts": {part: format_name(f) for part, f in recipe.parts.items()},
        "layers": {
            str(layer): {part: format_name(f) for part, f in parts.items()}
            for layer, parts in recipe.layers.items()
        },
    }


def recipe_from_json(value: Mapping[str, Any]) -> Recipe:
    """Reads what `recipe_to_json` wrote."""
    return Recipe(
        value["name"],
        FORMATS[value["default"]],
        {part: FORMATS[name] for part, name in value["parts"].items()},
        {
            int(layer): {part: FORMATS[name] for part, name in parts.items()}
            for layer, parts in value["layers"].items()
        },
        bool(value.get("is_smoothed")),
        {place: folds.parse(text) for place, text in value.get("folds", {}).items()},
        bool(value.get("is_compensated")),
    )


def format_name(fmt: WeightFormat | None) -> str:
    """Returns a format as recipes spell it."""
    return fmt.name if fmt else "none"
