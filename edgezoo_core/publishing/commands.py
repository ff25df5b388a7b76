"""The commands that make a published file again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from edgezoo_core.errors import plain
from edgezoo_core.recipe_writing import word


def install(manifest: Mapping[str, Any]) -> list[str]:
    """Returns the command that installs the recorded versions."""
    # `2.13.0+cpu` is a build of 2.13.0 that no public index has.
    versions = {word(n): word(v).partition("+")[0] for n, v in manifest["versions"].items()}
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
