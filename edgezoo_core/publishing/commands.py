"""The commands that make a published file again."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from edgezoo_core.errors import plain
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
    lines = [f'name = "{_word(called)}"', *_lines(parts)]
    if "compensated" in record:
        lines.append("compensate = true")
    for layer in sorted(exceptions):
        lines += ["", f"[layers.{layer}]", *_lines(exceptions[layer])]
    if folds:
        lines += ["", "[folds]", *(f'"{_word(p)}" = "{_word(k)}"' for p, k in folds.items())]
    return f"{called}.toml", "\n".join(lines) + "\n"


def install(manifest: Mapping[str, Any]) -> list[str]:
    """Returns the command that installs the recorded versions."""
    # `2.13.0+cpu` is a build of 2.13.0 that no public index has.
    versions = {_word(n): _word(v).partition("+")[0] for n, v in manifest["versions"].items()}
    return ["pip", "install", *(f"{n}=={v}" for n, v in versions.items())]


def convert(manifest: Mapping[str, Any], recipe: str) -> list[str]:
    """Returns the command that converts the source again.

    Args:
        manifest: Without paths of the machine (see `artifact.portable`).
        recipe: Name of the recipe, or of its file.
    """
    checkpoint, options = manifest["checkpoint"], manifest["options"]
    target = checkpoint["folder"]
    if checkpoint["repo"]:
        target = f"{checkpoint['repo']}@{checkpoint['commit']}"
    arguments = [target, "--family", manifest["model"]["family"], "--recipe", recipe]
    if not checkpoint["repo"] and manifest["model"]["card_id"]:
        arguments += ["--card", manifest["model"]["card_id"]]
    for length in options["prefill_lengths"]:
        arguments += ["--prefill", length]
    arguments += ["--kv-cache", options["kv_cache_length"], "--kv-layout", options["kv_layout"]]
    arguments.append("--mask-as-input" if options["mask_as_input"] else "--mask-built-in")
    for adapter in manifest.get("adapters", ()):
        arguments += ["--adapter", f"{adapter['source']}={adapter['weight']}"]
    if manifest["engine"] != "streaming":
        arguments += ["--engine", manifest["engine"]]
    return ["edgezoo", "convert", *map(str, arguments)]


def text(command: list[str]) -> str:
    """Returns a command as a line for a shell, whatever is in its words."""
    return plain(shlex.join(command))


def _lines(formats: Mapping[str, str]) -> list[str]:
    return [f'{part} = "{_word(name)}"' for part, name in formats.items()]


def _word(value: Any) -> str:
    if not _WORD.fullmatch(value):
        raise ValueError(f"{value!r} is no name")
    return str(value)
