"""Small random models of the three families, saved as transformers saves them, and converted."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

CLASSES = {
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "tinyllama": (LlamaConfig, LlamaForCausalLM),
    "phi2": (PhiConfig, PhiForCausalLM),
}
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 256,
}
#: Small models by name: the family, and what differs from SMALL.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-grouped": ("tinyllama", {}),
    "llama-multi-query-tied": (
        "tinyllama",
        {"num_key_value_heads": 1, "head_dim": 24, "tie_word_embeddings": True, "vocab_size": 403},
    ),
    "llama-multi-head-biased-odd": (
        "tinyllama",
        {
            "hidden_size": 132,
            "intermediate_size": 203,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "num_hidden_layers": 3,
            "attention_bias": True,
            "mlp_bias": True,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
    ),
    "gemma-multi-query": ("gemma", {"num_key_value_heads": 1, "head_dim": 48}),
    "gemma-grouped-odd": (
        "gemma",
        {"head_dim": 26, "intermediate_size": 177, "vocab_size": 391, "num_hidden_layers": 3},
    ),
    "gemma-multi-head-untied": (
        "gemma",
        {"num_key_value_heads": 4, "head_dim": 32, "tie_word_embeddings": False},
    ),
    "phi-multi-head": (
        "phi2",
        {
            "num_key_value_heads": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.4,
            },
        },
    ),
    "phi-grouped-odd": ("phi2", {"intermediate_size": 201, "vocab_size": 397}),
    "phi-multi-query-tied": ("phi2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
}


@dataclass(frozen=True)
class Saved:
    """A random model: transformers' own, and the folder that it was saved to."""

    family: str
    reference: Any
    folder: Path

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """float32 [T, V] of transformers over the whole sequence."""
        with torch.inference_mode():
            return self.reference(torch.tensor([tokens])).logits[0]


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Saved]:
    """Saves a random model: `save_model(family, **config)`."""

    def save(
        family: str, dtype: torch.dtype = torch.float32, spread: float = 1.35, **config: Any
    ) -> Saved:
        config_class, model_class = CLASSES[family]
        # With its default, spread makes logits that differ clearly; norms are not all ones.
        torch.manual_seed(7)
        reference = model_class(config_class(**{**SMALL, **config})).eval()
        for name, parameter in reference.named_parameters():
            if "norm" in name and name.endswith("weight"):
                centre = 0.0 if family == "gemma" else 1.0
                parameter.data.normal_(centre, 0.2)
            else:
                parameter.data.normal_(0, spread / parameter.shape[-1] ** 0.5)
        folder = tmp_path_factory.mktemp(family)
        reference.to(dtype).save_pretrained(folder)
        # Loaded again: casting to bf16 and back would round the rope tables, too.
        reference = model_class.from_pretrained(folder, dtype=torch.float32).eval()
        return Saved(family, reference, folder)

    return save


@pytest.fixture(scope="session")
def save_case(save_model: Callable[..., Saved]) -> Callable[[str], Saved]:
    """Saves a model of CASES by name, once."""
    made: dict[str, Saved] = {}

    def save(name: str) -> Saved:
        if name not in made:
            family, config = CASES[name]
            made[name] = save_model(family, **config)
        return made[name]

    return save
