"""Recipe files as `edgezoo_core.recipe.read` takes them, from what a manifest recorded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from edgezoo_core.recipe import RECIPES
from edgezoo_core.types import PARTS

_WORD = re.compile(r"[A-Za-z0-9][\w.+!-]*", re.ASCII)
_PLACE = re.compile(r"layers\.(\d+)\.(\w+)")


def recipe_file(manifest: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns name and text of the recipe file that a manifest amounts to.

    None where a name alone says it, or where a recipe file could not say it.
    """
    record = manifest["recipe"]
    folds, called = record.get("folds", {}), record["name"]
    if called in RECIPES:
        if not folds and "compensated" not in record:
            return None
        called += "_calibrated"  # what a file cannot be called
    parts: dict[str, str] = {}
    layers: dict[str, dict[int, str]] = {}
    for place, name in record["weights"].items():
        match = _PLACE.fullmatch(place)
        part = match[2] if match else place
        if part not in PARTS:
            return None
        if match:
            layers.setdefault(part, {})[int(match[1])] = name
        else:
            parts[part] = name
    exceptions: dict[int, dict[str, str]] = {}
    for part, names in layers.items():
        ((parts[part], _),) = Counter(names.values()).most_common(1)
        for layer, name in names.items():
            if name != parts[part]:
                exceptions.setdefault(layer, {})[part] = name
    lines = [f'name = "{word(called)}"', *_lines(parts)]
    if "compensated" in record:
        lines.append("compensate = true")
    for layer in sorted(exceptions):
        lines += ["", f"[layers.{layer}]", *_lines(exceptions[layer])]
    if folds:
        lines += ["", "[folds]", *(f'"{word(p)}" = "{word(k)}"' for p, k in folds.items())]
    return f"{called}.toml", "\n".join(lines) + "\n"


def word(value: Any) -> str:
    """Returns a name or number as it is, which nothing but itself can be read from.

    Raises:
        ValueError: It is none.
    """
    if not _WORD.fullmatch(value):
        raise ValueError(f"{value!r} is no name")
    return str(value)


def _lines(formats: Mapping[str, str]) -> list[str]:
    return [f'{part} = "{word(name)}"' for part, name in formats.items()]
