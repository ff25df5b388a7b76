"""Small models with random weights, and the reference that says what they compute."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from edgezoo_core.cards import Conformance
from edgezoo_core.checkpoint import Checkpoint, open_folder

#: Positions of a small model.
CONTEXT = 128
#: Tokens that its layers with a window see, and positions before its scaled rope: so few that both
#: matter.
WINDOW = 24
ORIGINAL_CONTEXT = 32
#: Sizes of a small model where its config class has them. All input channels are multiples of 128,
#: so that each recipe's blocks fit; rows differ from each other where they can.
SIZES: Mapping[str, int] = {
    "vocab_size": 160,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT,
    "sliding_window": WINDOW,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
#: Standard deviation of weights, times the square root of the input channels: logits differ
#: clearly.
_SPREAD = 1.35
#: The same of norms and biases, around what they begin with.
_VECTOR_SPREAD = 0.2

#: From tokens, int64 [1, T], to logits, float32 [1, T, V].
Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sample:
    """A small model on disk, and what it computes.

    Attributes:
        architecture: As config.json spells it.
        fields: Its config.json.
        checkpoint: Its files.
        forward: What its reference computes.
    """

    architecture: str
    fields: Mapping[str, Any]
    checkpoint: Checkpoint
    forward: Forward

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits, float32 [T, V], for tokens, int32 [1, T]."""
        with torch.inference_mode():
            return self.forward(tokens.long())[0].float()


class Reference(Protocol):
    """Makes small models of one architecture.

    Attributes:
        architecture: As config.json spells it.
        fields: config.json of the one that all others differ from in one field.
        names: Other spellings of its fields: standard name -> its own.
    """

    architecture: str
    fields: Mapping[str, Any]
    names: Mapping[str, str]

    def make(self, fields: Mapping[str, Any], folder: Path) -> Sample:
        """Makes the model of a config.json in an empty folder."""


class TransformersReference:
    """transformers' own implementation.

    Args:
        architecture: Name of a class of transformers.
        conformance: What the card lays over the small config.
    """

    def __init__(self, architecture: str, conformance: Conformance) -> None:
        import transformers

        self.architecture = architecture
        self._config_class: Any = getattr(transformers, architecture).config_class
        default: Any = self._config_class()
        self.names: Mapping[str, str] = default.attribute_map
        sizes: dict[str, Any] = {
            n: v
            for n, v in SIZES.items()
            if getattr(default, n, None) is not None and not _is_derived(self._config_class, n)
        }
        sizes |= {n: v for n, v in SIZES.items() if n.endswith("token_id")}
        kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
        if len(kinds) > 1:
            sizes |= {"num_hidden_layers": len(kinds), "layer_types": kinds}
        config = self._config_class(**{**sizes, **conformance.config})
        config.architectures = [architecture]
        self.fields: Mapping[str, Any] = json.loads(config.to_json_string(use_diff=False))

    def make(self, fields: Mapping[str, Any], folder: Path) -> Sample:
        """Makes the model of a config.json in an empty folder."""
        from transformers import AutoModelForCausalLM

        # A copy: transformers completes nested tables in place.
        config = self._config_class.from_dict(copy.deepcopy(dict(fields)))
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        ).eval()
        for name, parameter in model.named_parameters():
            parameter.data = _random(name, parameter.data)
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            model.save_pretrained(folder)
        # As it was given: transformers would write another spelling of it.
        (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
        checkpoint = open_folder(folder, f"a small {self.architecture}")
        return Sample(self.architecture, fields, checkpoint, lambda tokens: model(tokens).logits)


class SuppliedReference:
    """A function that the plugin supplies.

    Args:
        architecture: As config.json spells it.
        conformance: The config, and where the function is.
        shapes: From a config.json to the tensors that the checkpoint has.
    """

    def __init__(
        self,
        architecture: str,
        conformance: Conformance,
        shapes: Callable[[Mapping[str, Any]], Mapping[str, tuple[int, ...]]],
    ) -> None:
        module, _, function = str(conformance.reference).partition(":")
        self._open: Callable[[Path], Forward] = getattr(importlib.import_module(module), function)
        self._shapes = shapes
        self.architecture = architecture
        self.fields: Mapping[str, Any] = {
            "architectures": [architecture],
            **conformance.config,
        }
        self.names: Mapping[str, str] = {}

    def make(self, fields: Mapping[str, Any], folder: Path) -> Sample:
        """Makes the model of a config.json in an empty folder."""
        from safetensors.torch import save_file

        tensors = {n: _random(n, torch.ones(s)) for n, s in self._shapes(fields).items()}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
        checkpoint = open_folder(folder, f"a small {self.architecture}")
        return Sample(self.architecture, fields, checkpoint, self._open(folder))


def has_transformers(architecture: str) -> bool:
    """Whether transformers has a class of this name that makes text."""
    import transformers

    config: Any = getattr(getattr(transformers, architecture, None), "config_class", None)
    return config is not None and config in transformers.MODEL_FOR_CAUSAL_LM_MAPPING


def _is_derived(config_class: type, name: str) -> bool:
    """Whether a field follows from others, as Falcon's head_dim does."""
    field = getattr(config_class, name, None)
    return isinstance(field, property) and field.fset is None


def tokens(count: int) -> torch.Tensor:
    """Returns tokens, int32 [1, count]; always the same, and in half of the vocabulary, too."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(SIZES["vocab_size"] // 2, (1, count), generator=generator).int()


def _random(name: str, initial: torch.Tensor) -> torch.Tensor:
    """Returns weights that depend on the name alone, so that a variation keeps the others' values.

    Args:
        name: Of the parameter.
        initial: What it begins with: of a norm one or zero, of a bias zero.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(initial.shape, generator=generator)
    if initial.dim() < 2:
        return initial + _VECTOR_SPREAD * values
    return values * (_SPREAD / math.sqrt(initial.shape[-1]))
