"""The model that an artifact was made from, in float32, one layer in memory at a time.

Independent wherever it can be: transformers' own implementation. The re-authored module is the
other choice. Either is built without weights; accelerate brings those of a layer when it is called
and drops them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from edgezoo_core import model
from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.errors import VerificationError
from edgezoo_core.types import LazyTensor
from edgezoo_core.verification import runs
from edgezoo_core.verification.runs import Passage

#: From tokens, int64 [1, N], to logits float32 [P, V] and each layer's keys and values, float32
#: [Hkv, N, D].
Forward = Callable[[torch.Tensor, int], tuple[torch.Tensor, list[tuple[torch.Tensor, Any]]]]


def by_transformers(checkpoint: Checkpoint) -> Forward:
    """Returns transformers' implementation.

    Raises:
        VerificationError: transformers does not know the architecture, or the checkpoint's names.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

    try:
        config = AutoConfig.from_pretrained(
            str(checkpoint.folder), local_files_only=True, trust_remote_code=False
        )
        with init_empty_weights(include_buffers=False):
            net: Any = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, ImportError) as e:
        raise _unknown(checkpoint, str(e).splitlines()[0]) from e
    net.tie_weights()
    tied = dict(getattr(net, "_tied_weights_keys", None) or {})
    weights = _ByName(checkpoint, tied if config.tie_word_embeddings else {})
    missing = [n for n, _ in net.named_parameters() if n not in weights]
    if missing:
        raise _unknown(checkpoint, f"the checkpoint lacks {missing[0]}")
    model.bring(net, weights)

    def forward(tokens: torch.Tensor, start: int) -> Any:
        kept = torch.arange(start - 1, tokens.shape[1])
        # Made here, a cache keeps every token; the model's own drops what a window has left behind.
        cache: Any = DynamicCache()
        output = net(tokens, use_cache=True, past_key_values=cache, logits_to_keep=kept)
        return output.logits[0], [(layer.keys[0], layer.values[0]) for layer in cache.layers]

    return forward


def by_author(module: Any, weights: Mapping[str, LazyTensor]) -> Forward:
    """Returns the re-authored module, parameters on meta, with the weights it is to have."""
    from litert_torch.generative.layers.kv_cache import KV_LAYOUT_TRANSPOSED, KVCache

    model.on_demand(module, weights)

    def forward(tokens: torch.Tensor, start: int) -> Any:
        length = tokens.shape[1]
        mask = torch.full((1, 1, length, length), float("-inf")).triu(1)
        cache = KVCache.from_model_config(length, module.config, kv_layout=KV_LAYOUT_TRANSPOSED)
        output = module(tokens.int(), torch.arange(length, dtype=torch.int32), cache, mask)
        entries = [(c.k_cache[0], c.v_cache[0].transpose(1, 2)) for c in output["kv_cache"].caches]
        return output["logits"][0, start - 1 :], entries

    return forward


def score(forward: Forward, passage: Passage, folder: Path) -> None:
    """Lets a reference read a passage; logits, keys and values go to `folder` (see `runs.Run`)."""
    with torch.inference_mode():
        logits, cache = forward(torch.tensor([passage.tokens]), passage.start)
    kept = runs.create(folder, "logits", logits.shape)
    kept[:] = logits.numpy()
    kept.flush()
    for position, name in enumerate(("keys", "values")):
        blocks = [pair[position] for pair in cache]
        kept = runs.create(folder, name, (len(blocks), *blocks[0].shape))
        for number, block in enumerate(blocks):
            kept[number] = block.numpy()
        kept.flush()


def choices(forward: Forward, tokens: tuple[int, ...], start: int, vocabulary: int | None) -> Any:
    """Returns the likeliest token behind the first `start` tokens, and behind each after them."""
    with torch.inference_mode():
        logits, _ = forward(torch.tensor([tokens]), start)
    return logits[:, :vocabulary].argmax(-1).tolist()


class _ByName(Mapping[str, torch.Tensor]):
    """A checkpoint's tensors under the names of transformers' parameters, in float32."""

    def __init__(self, checkpoint: Checkpoint, tied: Mapping[str, str]) -> None:
        self._checkpoint = checkpoint
        self._tied = tied

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._checkpoint.tensor(self._stored(name)).read().float()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._stored(name) in self._checkpoint.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.tensors)

    def __len__(self) -> int:
        return len(self._checkpoint.tensors)

    def _stored(self, name: str) -> str:
        if name in self._tied:
            return self._tied[name]
        # Some checkpoints are saved from the decoder alone.
        return name if name in self._checkpoint.tensors else name.removeprefix("model.")


def _unknown(checkpoint: Checkpoint, reason: str) -> VerificationError:
    return VerificationError(
        f"transformers cannot be the reference for {checkpoint.source}: {reason}",
        remedy="pass --reference authored",
    )
