"""The five hooks of a model plugin.

Each is asked of the family that owns the model, then of `edgezoo_core.defaults`; the first answer
that is not None counts. So None means "take the core's default", and only `author` and
`tensor_names` have none.

HOOK_API grows by one in each minor release that adds or renames a hook or an argument. Additions
leave older plugins as they are, since a function is handed only the arguments that it names. A
renamed argument keeps its old name for one minor release, with a warning. Whatever else is taken
away is announced a minor release before, and OLDEST_HOOK_API then grows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from litert_torch.generative.utilities.loader import ModelLoader

    from edgezoo_core.checkpoint import Checkpoint
    from edgezoo_core.config import Config
    from edgezoo_core.shapes import SignatureOptions
    from edgezoo_core.types import (
        LazyTensor,
        Model,
        QuantPlan,
        Recipe,
        Signature,
    )

hookspec = pluggy.HookspecMarker("edgezoo")

#: Hook -> old name of an argument -> its new one. Emptied with each minor release.
RENAMED: Mapping[str, Mapping[str, str]] = {}


@hookspec(firstresult=True)
def author(model: Model, config: Config) -> torch.nn.Module | None:
    """Re-authors the architecture from litert-torch's building blocks.

    Args:
        model: What is being converted.
        config: The checkpoint's config.json. Whatever it can say is read from it, never typed in;
            what the author does not implement is refused with `config.only`.

    Returns:
        A module in eval mode, its parameters on the meta device, with litert-torch's ModelConfig as
        `.config`. It is called with `tokens` int32 [1, T], `input_pos` int32 [T], `kv_cache`
        (litert-torch's KVCache of float32), `mask` float32 [1, 1, T, S] or None, and returns
        `{"logits": float32 [1, T, V], "kv_cache": KVCache}`.

    Example:
        `return authoring.decoder(model_config(config))`
    """


@hookspec(firstresult=True)
def tensor_names(
    model: Model, config: Config, names: frozenset[str]
) -> ModelLoader.TensorNames | None:
    """Says where each part of the model stands in the checkpoint.

    Args:
        model: What is being converted.
        config: The checkpoint's config.json.
        names: The checkpoint's tensor names, for families that are published in several layouts.

    Returns:
        litert-torch's TensorNames: prefixes without `.weight`; `{}` stands for the layer.

    Example:
        `return TensorNames(embedding="model.embed_tokens", final_norm="model.norm", …)`
    """


@hookspec(firstresult=True)
def load(
    model: Model,
    module: torch.nn.Module,
    checkpoint: Checkpoint,
    tensor_names: ModelLoader.TensorNames,
) -> Mapping[str, LazyTensor] | None:
    """Maps each parameter of the module to tensors of the checkpoint. Nothing is read yet.

    Args:
        model: What is being converted.
        module: What `author` returned.
        checkpoint: Names, shapes and dtypes of all tensors, and their lazy values.
        tensor_names: What `tensor_names` returned.

    Returns:
        Parameter name -> lazy tensor of that parameter's shape, one for every parameter (tied
        ones once); its `slices` are rows of the checkpoint's tensors, which is how it streams. The
        core's default follows `tensor_names`.

    Example:
        `return {**default, "pos.weight": checkpoint.tensor("wpe.weight")}`
    """


@hookspec(firstresult=True)
def quant_recipe(model: Model, module: torch.nn.Module, recipe: Recipe) -> QuantPlan | None:
    """Meets a recipe with the model: the format of every weight.

    Args:
        model: What is being converted.
        module: What `author` returned.
        recipe: Formats by part and layer, from a name or a file.

    Returns:
        One rule per weight and operator. The core's default covers every Linear and Embedding.

    Example:
        `return None` for the default; a plan whose router weights stay float32 otherwise.
    """


@hookspec(firstresult=True)
def signatures(
    model: Model, module: torch.nn.Module, options: SignatureOptions
) -> Sequence[Signature] | None:
    """Lists the entry points to export, with example inputs.

    Args:
        model: What is being converted.
        module: What `author` returned, its mask cache built if the mask is not an input.
        options: Prefill lengths, KV cache length and layout, form of the mask.

    Returns:
        `prefill_<T>` for each length, inputs `tokens` int32 [1, T], `input_pos` int32 [T],
        `kv_cache_k_<i>`, `kv_cache_v_<i>` float32, `mask` float32 [1, 1, T, S] if wanted, outputs
        the caches; and `decode`, T = 1, with `logits` float32 [1, 1, V] besides.

    Example:
        `return None`: the core's default gives just these.
    """
