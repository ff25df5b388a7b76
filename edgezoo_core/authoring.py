"""What plugin authors import: the whole public surface for re-authoring a decoder.

Import it inside the hooks, not at the top of the plugin's `__init__`: it brings torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import litert_torch.generative.layers.model_config as layers
import torch
from litert_torch.generative.utilities.loader import ModelLoader
from litert_torch.generative.utilities.model_builder import DecoderOnlyModel

from edgezoo_core.config import Config, Rope
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.types import LazyTensor, Model, QuantPlan, Recipe, Signature

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
    config: layers.ModelConfig, model_class: type[DecoderOnlyModel] = DecoderOnlyModel
) -> DecoderOnlyModel:
    """Builds a decoder with its parameters on the meta device, in eval mode.

    Args:
        config: litert-torch's description of the architecture.
        model_class: A subclass whose forward differs.
    """
    with torch.device("meta"):
        module = model_class(config, 0)
    if config.lm_head_share_weight_with_embedding:
        # On meta litert-torch leaves two parameters; one that is shared is what tied means.
        module.lm_head.weight = module.tok_embedding.weight
    return module.eval()


__all__ = [
    "ACTIVATIONS",
    "Config",
    "DecoderOnlyModel",
    "LazyTensor",
    "Model",
    "QuantPlan",
    "Recipe",
    "Rope",
    "Signature",
    "SignatureOptions",
    "TensorNames",
    "decoder",
    "layers",
]
