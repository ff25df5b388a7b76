"""The mapped model against transformers' own, before any conversion."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from litert_torch.generative.layers.kv_cache import KV_LAYOUT_TRANSPOSED, KVCache

from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.errors import CheckpointError
from edgezoo_core.recipe import part_of

#: Tokens of the sample that is run.
SAMPLE_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two runs of the same tokens are apart.

    Attributes:
        largest: Largest absolute difference of a logit.
        scale: Largest absolute logit of the reference.
        same_choice: Share of positions at which both choose the same token.
    """

    largest: float
    scale: float
    same_choice: float


def sample_tokens(vocab_size: int) -> torch.Tensor:
    """Returns tokens, int32 [1, SAMPLE_LENGTH], spread over the vocabulary; always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (1, SAMPLE_LENGTH), generator=generator, dtype=torch.int32)


def run(module: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Runs an authored module once over tokens, int32 [1, T].

    Returns:
        logits: float32 [1, T, V].
    """
    length = tokens.shape[1]
    mask = torch.full((1, 1, length, length), float("-inf")).triu(1)
    cache = KVCache.from_model_config(length, module.config, kv_layout=KV_LAYOUT_TRANSPOSED)
    positions = torch.arange(length, dtype=torch.int32)
    logits: torch.Tensor = module(tokens, positions, cache, mask)["logits"]
    return logits


def compare(checkpoint: Checkpoint, logits: torch.Tensor, tokens: torch.Tensor) -> Difference:
    """Holds logits against transformers' own implementation on the same checkpoint, in float32.

    Raises:
        CheckpointError: transformers cannot load the checkpoint.
    """
    from transformers import AutoModelForCausalLM

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            reference: Any = AutoModelForCausalLM.from_pretrained(
                str(checkpoint.folder),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, KeyError) as e:
        raise CheckpointError(
            f"transformers cannot load {checkpoint.source}: {str(e).splitlines()[0]}",
            remedy="leave out --compare",
        ) from e
    with torch.inference_mode():
        expected = reference.eval()(tokens.long()).logits
    same = (expected.argmax(-1) == logits.argmax(-1)).float().mean()
    return Difference(
        float((logits - expected).abs().max()), float(expected.abs().max()), float(same)
    )


def parameters_by_part(module: torch.nn.Module) -> Mapping[str, int]:
    """Counts the parameters of each part, layers taken together, tied ones once."""
    counts: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        is_gated = ".ff." in name and hasattr(module.get_submodule(name.rsplit(".", 2)[0]), "w3")
        part, _ = part_of(f"{name.rpartition('.')[0]}.weight", is_gated=is_gated)
        if part.endswith(".weight"):
            part = "norms"
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts
