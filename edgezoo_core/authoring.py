"""What plugin authors import: the whole public surface for re-authoring a decoder.

Import it inside the hooks, not at the top of the plugin's `__init__`: it brings torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import litert_torch.generative.layers.model_config as layers
import torch
from litert_torch.generative.utilities.loader import ModelLoader

from edgezoo_core import defaults
from edgezoo_core.architecture import AttentionConfig, BlockConfig, Decoder
from edgezoo_core.checkpoint import HUB_NAMES, Checkpoint
from edgezoo_core.config import Config
from edgezoo_core.folds import Fold
from edgezoo_core.rope import Rope
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.types import (
    LazyTensor,
    Model,
    QuantPlan,
    Recipe,
    RowSlice,
    Signature,
    WeightFormat,
    WeightRule,
)

#: Prefixes of the checkpoint's tensor names by part; `{}` stands for the layer.
TensorNames = ModelLoader.TensorNames

#: Activations as config.json spells them.
#: Source: transformers.activations.ACT2FN; gelu_new, gelu_fast and gelu_pytorch_tanh are three
#: spellings of the same tanh approximation.
ACTIVATIONS: Mapping[str, layers.ActivationType] = {
    "gelu": layers.ActivationType.GELU,
    "gelu_fast": layers.ActivationType.GELU_TANH,
    "gelu_new": layers.ActivationType.GELU_TANH,
    "gelu_pytorch_tanh": layers.ActivationType.GELU_TANH,
    "relu": layers.ActivationType.RELU,
    "silu": layers.ActivationType.SILU,
    "swish": layers.ActivationType.SILU,
}


def decoder(
    config: layers.ModelConfig,
    model_class: type[Decoder] = Decoder,
    *,
    folds: Sequence[Fold] = (),
) -> Decoder:
    """Builds a decoder with its parameters on the meta device, in eval mode.

    Args:
        config: litert-torch's description of the architecture.
        model_class: A subclass whose forward differs.
        folds: Which producers of activations feed which weights, and nothing else, so that
            factors can pass from the one to the other: what recipes with `smooth` work with.
            Those that are not exact for the config are refused when the model is compiled.
    """
    with torch.device("meta"):
        module: Decoder = model_class(config, 0)
    if config.lm_head_share_weight_with_embedding:
        # On meta litert-torch leaves two parameters; one that is shared is what tied means.
        module.lm_head.weight = module.tok_embedding.weight
    module.folds = tuple(folds)
    module.eval()
    return module


def usual_folds(config: layers.ModelConfig) -> list[Fold]:
    """Returns the folds of blocks like Llama's, and of a head that is not the embedding.

    Such a block has a norm before attention, another before a gated feed-forward, and nothing
    between values and the output projection.

    Args:
        config: Of the model.
    """
    found = [
        Fold("pre_attention_norm", ("qkv",)),
        Fold("value", ("o",)),
        Fold("post_attention_norm", ("gate", "up")),
        Fold("up", ("down",)),
    ]
    if not config.lm_head_share_weight_with_embedding:
        found.append(Fold("final_norm", ("lm_head",)))
    return found


def rms_norm(epsilon: float, *, zero_centered: bool = False) -> layers.NormalizationConfig:
    """Describes an RMSNorm.

    Args:
        epsilon: Added to the mean square.
        zero_centered: Whether the stored weight is the distance from one, as Gemma's.
    """
    kind = layers.NormalizationType.RMS_NORM
    return layers.NormalizationConfig(type=kind, epsilon=epsilon, zero_centered=zero_centered)


def layer_norm(epsilon: float, *, has_bias: bool = True) -> layers.NormalizationConfig:
    """Describes a LayerNorm with a weight and, as a rule, a bias.

    Args:
        epsilon: Added to the variance.
        has_bias: Whether the checkpoint has biases of it.
    """
    kind = layers.NormalizationType.LAYER_NORM
    return layers.NormalizationConfig(type=kind, epsilon=epsilon, use_bias=has_bias)


def with_windows(block: BlockConfig, windows: Sequence[int | None]) -> list[BlockConfig]:
    """Returns one block per layer, each with its sliding window.

    Args:
        block: What the layers have in common.
        windows: Tokens that each layer sees, the token itself included; None for all. See
            `Config.sliding_windows`.
    """
    shared: Any = block
    attentions = (replace(shared.attn_config, sliding_window_size=w) for w in windows)
    return [replace(shared, attn_config=attention) for attention in attentions]


def hub_names(*, tied: bool, **others: str | None) -> ModelLoader.TensorNames:
    """Returns the tensor names that transformers' Llama began with and most families keep.

    Args:
        tied: Whether the head is the embedding, and has no tensor.
        others: Fields of TensorNames that differ or come on top; None takes one away, and
            `attn_fused_qkv_proj` those of q, k and v.
    """
    names: dict[str, str | None] = {**HUB_NAMES}
    if tied:
        names["lm_head"] = None
    if others.get("attn_fused_qkv_proj"):
        names |= dict.fromkeys(("attn_query_proj", "attn_key_proj", "attn_value_proj"))
    found: ModelLoader.TensorNames = TensorNames(**{**names, **others})
    return found


__all__ = [
    "decoder",
    "layers",
    "AttentionConfig",
    "BlockConfig",
    "rms_norm",
    "layer_norm",
    "with_windows",
    "ACTIVATIONS",
    "Rope",
    "TensorNames",
    "hub_names",
    "Decoder",
    "Fold",
    "usual_folds",
    "Model",
    "Config",
    "Checkpoint",
    "LazyTensor",
    "RowSlice",
    "Recipe",
    "QuantPlan",
    "WeightRule",
    "WeightFormat",
    "SignatureOptions",
    "Signature",
    "defaults",
]
