"""What workers do for recipes that calibrate: the model reads a text."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core.compiler.job import Job
from edgezoo_core.compiler.schema import import_litert_torch
from edgezoo_core.types import Progress, QuantPlan

if TYPE_CHECKING:
    from edgezoo_core.model import AuthoredModel


def smooth(
    progress: Progress,
    job: Mapping[str, Any],
    adapters: Sequence[tuple[str, float, str]],
    text: str,
) -> dict[str, Any]:
    """Lets the model read a text, and chooses what is folded by what its weights then read.

    Returns:
        `folds`: exponents by place, and `tokens`: how many were read.
    """
    asked, authored, plan = build(progress, job, adapters)
    from edgezoo_core.calibrating import folding, passage

    config: Any = authored.module.config
    read = passage.tokens(text, asked.folder, config.vocab_size, authored.context_length)
    progress(f"calibrating on {len(read)} tokens")
    chosen = folding.choose(
        authored, plan, read, progress, is_compensated=asked.recipe.is_compensated
    )
    return {"folds": chosen, "tokens": len(read)}


def compensate(
    progress: Progress,
    job: Mapping[str, Any],
    adapters: Sequence[tuple[str, float, str]],
    text: str,
    folder: str,
) -> dict[str, Any]:
    """Lets the model read a text, and rounds its weights by what they read, into a folder.

    Returns:
        `tokens`: how many were read.
    """
    asked, authored, plan = build(progress, job, adapters)
    from edgezoo_core import folds
    from edgezoo_core.calibrating import compensation, passage
    from edgezoo_core.conversion import rescaling

    config: Any = authored.module.config
    read = passage.passages(text, asked.folder, config.vocab_size, authored.context_length)
    shapes = {n: tuple(w.shape) for n, w in authored.weights.items()}
    places = folds.places(authored.module)
    factors = rescaling.build(places, asked.recipe.folds, shapes, asked.model.source)
    count = sum(map(len, read))
    progress(f"rounding by {count} tokens")
    compensation.compensate(authored, plan, factors, read, Path(folder), progress)
    return {"tokens": count}


def build(
    progress: Progress, job: Mapping[str, Any], adapters: Sequence[tuple[str, float, str]]
) -> tuple[Job, AuthoredModel, QuantPlan]:
    """Returns what was asked for, the model, whose weights are not read yet, and its formats."""
    gc.enable()
    progress("importing the libraries")
    import_litert_torch()
    from edgezoo_core import adapter_merging, model
    from edgezoo_core.checkpoint import open_folder
    from edgezoo_core.compiler.stages import load_plugin

    asked = Job.from_json(job)
    checkpoint = open_folder(asked.folder, asked.model.source)
    if adapters:
        tied = asked.config.get("tie_word_embeddings")
        checkpoint = adapter_merging.open_adapters(adapters, checkpoint, tied).merged(checkpoint)
    plugin = load_plugin(asked)
    authored = model.build(plugin, asked.model, checkpoint, asked.config)
    return asked, authored, plugin.quant_recipe(asked.model, authored.module, asked.recipe)
