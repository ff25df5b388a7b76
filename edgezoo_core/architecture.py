"""A decoder of litert-torch's building blocks, with what its own decoder lacks.

Rotary positions per layer and scaled, windows in any mask, soft-capped logits, norms behind
attention and feed-forward, scores scaled otherwise. What a config does not use is not in the graph.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from litert_torch.generative.layers import kv_cache as kv
from litert_torch.generative.layers import model_config as layers
from litert_torch.generative.layers.attention import TransformerBlock
from litert_torch.generative.layers.rotary_position_embedding import build_rope
from litert_torch.generative.utilities.export_config import ExportConfig
from litert_torch.generative.utilities.model_builder import DecoderOnlyModel

from edgezoo_core.folds import Fold
from edgezoo_core.rope import Rope

#: The tanh of this and all above is 1 in float32.
_SATURATED = 16.0


@dataclasses.dataclass(kw_only=True)
class AttentionConfig(layers.AttentionConfig):
    """litert-torch's, with rows of q, k and v in the order that checkpoints have.

    Attributes:
        rope: Rotary positions of these layers; None for layers without. litert-torch's
            `rotary_base` and `rotary_percentage` follow from it, and cannot be set.
        scale: Factor of the scores; None for head_dim ** -0.5.
    """

    rope: Rope | None
    scale: float | None = None
    qkv_transpose_before_split: bool = True
    qkv_fused_interleaved: bool = False
    rotary_base: float = dataclasses.field(init=False)
    rotary_percentage: float = dataclasses.field(init=False)


AttentionConfig.rotary_base = property(  # type: ignore[assignment]
    lambda self: self.rope.theta if self.rope else 0.0
)
AttentionConfig.rotary_percentage = property(  # type: ignore[assignment]
    lambda self: self.rope.partial_factor if self.rope else 0.0
)


@dataclasses.dataclass(kw_only=True)
class BlockConfig(layers.TransformerBlockConfig):
    """litert-torch's, with a choice of where `post_attention_norm_config` belongs.

    Attributes:
        norm_outputs: Whether it is applied to what attention gives, before that is added (Gemma 2
            and 3, OLMo 2), rather than to what the feed-forward reads.
    """

    norm_outputs: bool = False


class Decoder(DecoderOnlyModel):
    """A decoder-only model as its ModelConfig describes it.

    Called with `tokens` int32 [1, T], `input_pos` int32 [T], `kv_cache`, and `mask` float32
    [1, 1, T, S] or None for the causal one that `build_mask_cache` made; returns `logits` float32
    [1, T, V] and `kv_cache`.

    Attributes:
        folds: What the author declares of producers and consumers.
    """

    def __init__(self, config: layers.ModelConfig, mask_cache_size: int = 0) -> None:
        super().__init__(config, mask_cache_size)
        self.folds: tuple[Fold, ...] = ()
        for index in range(config.num_layers):
            block = config.block_config(index)
            if getattr(block, "norm_outputs", False):
                self.transformer_blocks[index] = OutputNormTransformerBlock(block, config)
            attention = self.transformer_blocks[index].atten_func
            factor = _score_factor(block.attn_config)
            if factor != 1:
                attention.query_norm = ScaledNorm(attention.query_norm, factor)

    @torch.inference_mode()
    def forward(
        self,
        tokens: torch.Tensor,
        input_pos: torch.Tensor,
        kv_cache: kv.KVCache,
        mask: torch.Tensor | None = None,
        lora: Any = None,
        export_config: ExportConfig | None = None,
    ) -> dict[str, Any]:
        """Runs the model over tokens at the given positions."""
        x = self.tok_embedding(tokens)
        ropes = _Ropes(input_pos)
        if mask is None:
            mask = self.mask_cache.index_select(2, input_pos)
            mask = mask[:, :, :, : kv_cache.get_max_seq_len()]
        masks = _Masks(mask, input_pos)
        if self.config.embedding_scale is not None:
            x = x * self.config.embedding_scale
        entries = []
        for index, block in enumerate(self.transformer_blocks):
            attention = block.config.attn_config
            adapter = lora.adapters[index] if lora else None
            x, entry = block(
                x,
                ropes.of(attention),
                masks.of(_window(attention)),
                input_pos,
                kv_cache.caches[index],
                adapter,
            )
            entries.append(entry)
        caches = kv.KVCache(tuple(entries))
        wants_logits = export_config is None or export_config.output_logits_on_prefill
        if input_pos.numel() > 1 and not wants_logits:
            return {"kv_cache": caches}
        return {"logits": self._logits(self.final_norm(x)), "kv_cache": caches}

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm_head(x)
        cap = self.config.final_logit_softcap
        if cap is None:
            return logits
        # Without something between, the division is folded into the head's weights, and a table
        # that is tied is stored twice. No float32 below 1 is the tanh of what is cut off here.
        logits = torch.clamp(logits, max=_SATURATED * cap)
        capped: torch.Tensor = torch.tanh(logits / cap) * cap
        return capped


class OutputNormTransformerBlock(TransformerBlock):
    """A block whose post-attention norm is applied to what attention gives."""

    def forward(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor] | None = None,
        mask: torch.Tensor | None = None,
        input_pos: torch.Tensor | None = None,
        kv_cache: kv.KVCacheEntry = None,
        lora: Any = None,
    ) -> tuple[torch.Tensor, kv.KVCacheEntry]:
        """Returns float32 [1, T, E] and the cache with the keys and values of these tokens."""
        attended, entry = self.atten_func(
            self.pre_atten_norm(x), rope, mask, input_pos, kv_cache, lora
        )
        x = x + self.post_atten_norm(attended)
        return x + self.ff(x), entry


class ScaledNorm(torch.nn.Module):
    """A query norm, none included, and a factor behind it: litert-torch's scores know one scale."""

    def __init__(self, norm: Any, factor: float) -> None:
        super().__init__()
        self.norm = norm
        self.factor = factor

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        """Returns float32 of the same shape."""
        scaled: torch.Tensor = self.norm(query) * self.factor
        return scaled


def describe(config: Any) -> str:
    """Returns a configuration as indented lines: the fields that are not at their defaults."""
    return "\n".join(_lines(config))


def windows(config: layers.ModelConfig) -> list[int | None]:
    """Returns how many tokens back each layer sees; None for all."""
    return [_window(config.block_config(i).attn_config) for i in range(config.num_layers)]


def drop_idle_windows(module: torch.nn.Module, capacity: int) -> None:
    """Forgets windows that no position of the KV cache reaches beyond.

    Args:
        module: A decoder; its layers become alike if only such windows told them apart.
        capacity: Slots of the KV cache that are used.
    """
    if not isinstance(module, Decoder):
        return
    for block in module.transformer_blocks:
        attention = block.config.attn_config
        window = _window(attention)
        if window is not None and window >= capacity:
            attention = dataclasses.replace(attention, sliding_window_size=None)
            block.config = dataclasses.replace(block.config, attn_config=attention)
            block.atten_func.config = attention
    module.config = dataclasses.replace(
        module.config, block_configs=[b.config for b in module.transformer_blocks]
    )


class _Ropes:
    """Cosines and sines of the positions, made once for all layers that share them."""

    def __init__(self, input_pos: torch.Tensor) -> None:
        self._input_pos = input_pos
        self._made: dict[tuple[Rope, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, attention: layers.AttentionConfig) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Returns cosines and sines, float32 [1, T, D / 2] each, of the rotated dimensions D."""
        rope = getattr(attention, "rope", None) or Rope(
            attention.rotary_base, attention.rotary_percentage or 0.0
        )
        dimensions = int(rope.partial_factor * attention.head_dim)
        if not dimensions:
            return None
        key = (rope, dimensions)
        if key not in self._made:
            self._made[key] = self._make(rope, dimensions)
        return self._made[key]

    def _make(self, rope: Rope, dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
        if rope.scaling is None:
            made: tuple[torch.Tensor, torch.Tensor] = build_rope(
                self._input_pos, dimensions, rope.theta
            )
            return made
        frequencies = rope.scaling.scaled(
            [rope.theta ** (-i / dimensions) for i in range(0, dimensions, 2)]
        )
        radians = self._input_pos.float()[None, :, None] * torch.tensor(frequencies)
        return torch.cos(radians), torch.sin(radians)


class _Masks:
    """The mask as each window narrows it, made once for all layers that share it."""

    def __init__(self, mask: torch.Tensor, input_pos: torch.Tensor) -> None:
        self._input_pos = input_pos
        self._whole = mask
        self._made: dict[int, torch.Tensor] = {}

    def of(self, window: int | None) -> torch.Tensor:
        """Returns float32 [1, 1, T, S]: minus infinity from `window` tokens back."""
        if window is None:
            return self._whole
        if window not in self._made:
            slots = torch.arange(self._whole.shape[-1], dtype=self._input_pos.dtype)
            distance = self._input_pos[:, None] - slots[None, :]
            self._made[window] = torch.where(distance < window, self._whole, -math.inf)
        return self._made[window]


def _window(attention: layers.AttentionConfig) -> int | None:
    is_global = attention.attn_type is layers.AttentionType.GLOBAL
    window: int | None = None if is_global else attention.sliding_window_size
    return window


def _score_factor(attention: layers.AttentionConfig) -> float:
    scale = getattr(attention, "scale", None)
    return 1.0 if scale is None else float(scale * math.sqrt(attention.head_dim))


def _lines(config: Any) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value == default:
            continue
        if isinstance(value, list) and value:
            runs = [(block, len(list(same))) for block, same in itertools.groupby(value)]
            for block, count in runs:
                yield f"{field.name} ({count} layers)"
                yield from (f"  {line}" for line in _lines(block))
        elif dataclasses.is_dataclass(value) and not isinstance(value, Rope):
            yield field.name
            yield from (f"  {line}" for line in _lines(value))
        else:
            yield f"{field.name} = {value.name if isinstance(value, enum.Enum) else value}"
