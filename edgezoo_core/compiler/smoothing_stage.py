"""What a worker does to choose what a recipe folds: the model reads a text."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

from edgezoo_core.compiler.job import Job
from edgezoo_core.compiler.schema import import_litert_torch
from edgezoo_core.types import Progress


def smooth(
    progress: Progress,
    job: Mapping[str, Any],
    adapters: Sequence[tuple[str, float, str]],
    text: str,
) -> dict[str, Any]:
    """Authors the model, lets it read a text, and chooses by what its weights then read.

    Returns:
        `folds`: exponents by place, and `tokens`: how many were read.
    """
    gc.enable()
    progress("importing the libraries")
    import_litert_torch()
    from edgezoo_core import adapter_merging, model
    from edgezoo_core.checkpoint import open_folder
    from edgezoo_core.compiler.stages import load_plugin
    from edgezoo_core.smoothing import folding, passage

    asked = Job.from_json(job)
    checkpoint = open_folder(asked.folder, asked.model.source)
    if adapters:
        tied = asked.config.get("tie_word_embeddings")
        checkpoint = adapter_merging.open_adapters(adapters, checkpoint, tied).merged(checkpoint)
    plugin = load_plugin(asked)
    authored = model.build(plugin, asked.model, checkpoint, asked.config)
    plan = plugin.quant_recipe(asked.model, authored.module, asked.recipe)
    config: Any = authored.module.config
    read = passage.tokens(text, asked.folder, config.vocab_size, authored.context_length)
    progress(f"calibrating on {len(read)} tokens")
    return {"folds": folding.choose(authored, plan, read, progress), "tokens": len(read)}
