"""The core's own plugin, asked last: a decoder-only model needs nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from litert_torch.generative.layers.kv_cache import (
    KV_LAYOUT_DEFAULT,
    KV_LAYOUT_TRANSPOSED,
    KVCache,
)
from litert_torch.generative.utilities.converter import ExportableModule
from litert_torch.generative.utilities.export_config import ExportConfig

from edgezoo_core import architecture, hookimpl, mapping, slots
from edgezoo_core import recipe as recipes
from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.mapping import TensorNames
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.types import LazyTensor, Model, QuantPlan, Recipe, Signature

_LAYOUTS = {"default": KV_LAYOUT_DEFAULT, "transposed": KV_LAYOUT_TRANSPOSED}


@hookimpl
def load(
    module: torch.nn.Module, checkpoint: Checkpoint, tensor_names: TensorNames
) -> dict[str, LazyTensor]:
    """Follows the author's tensor names."""
    return mapping.map_parameters(module, checkpoint, tensor_names)


@hookimpl
def quant_recipe(model: Model, module: torch.nn.Module, recipe: Recipe) -> QuantPlan:
    """Covers every Linear and Embedding of the module."""
    return recipes.meet(recipe, module, model.source)


@hookimpl
def signatures(module: torch.nn.Module, options: SignatureOptions) -> list[Signature]:
    """One prefill signature per length, and decode."""
    layout = _LAYOUTS[options.kv_layout]
    export = ExportConfig(kvcache_layout=layout, mask_as_input=options.mask_as_input)
    exported = ExportableModule(module, export_config=export).eval()
    cache_length = _slots(module, options)
    kv_cache = _empty_cache(module, cache_length, layout)

    def signature(name: str, length: int) -> Signature:
        inputs = {
            "tokens": torch.zeros((1, length), dtype=torch.int32),
            "input_pos": torch.arange(length, dtype=torch.int32),
            "kv_cache": kv_cache,
        }
        if options.mask_as_input:
            inputs["mask"] = torch.zeros((1, 1, length, cache_length))
        return Signature(name, exported, inputs)

    prefill = [signature(f"prefill_{n}", n) for n in options.prefill_lengths]
    return [*prefill, signature("decode", 1)]


def _slots(module: Any, options: SignatureOptions) -> int:
    """Returns the slots that the graphs name; LiteRT-LM tells them by the mask."""
    # A window is cut by the number of each slot, which a runtime that drops slots cannot rewrite.
    has_windows = any(w is not None for w in architecture.windows(module.config))
    if not options.mask_as_input or has_windows:
        return options.kv_cache_length
    dimensions = {d for p in module.parameters() for d in p.shape} | set(options.prefill_lengths)
    return slots.adjustable(options.kv_cache_length, dimensions)


def _empty_cache(module: torch.nn.Module, length: int, layout: Any) -> KVCache:
    """Returns a KV cache of zeros that takes no memory: pages that nobody writes are not there."""
    config: Any = module.config
    cache = KVCache.from_model_config(length, config, device=torch.device("meta"), kv_layout=layout)
    for entry in cache.caches:
        entry.k_cache, entry.v_cache = (
            torch.from_numpy(np.zeros(tuple(t.shape), np.float32))
            for t in (entry.k_cache, entry.v_cache)
        )
    return cache
