"""The static shapes of an artifact's signatures: what a card or a user chooses.

Apart from `types` so that listing cards pays for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgezoo_core.errors import ConversionError

KvLayout = Literal["transposed", "default"]


@dataclass(frozen=True, slots=True)
class SignatureOptions:
    """Static shapes of the signatures to export.

    Attributes:
        prefill_lengths: Tokens (T) per prefill signature, ascending. LiteRT-LM fails a turn once
            the free cache is shorter than the smallest, so a small one belongs among them.
        kv_cache_length: Slots (S) of the KV cache that are used, prompt and answer together. Where
            the mask is an input, the graphs may name a few more, see `edgezoo_core.slots`.
        kv_layout: `transposed`: k float32 [1, Hkv, S, D], v float32 [1, Hkv, D, S];
            `default`: both float32 [1, S, Hkv, D].
        mask_as_input: Whether the attention mask, float32 [1, 1, T, S], is an input. Otherwise an
            S x S mask is a constant of the graph.
    """

    prefill_lengths: tuple[int, ...] = (8, 128)
    kv_cache_length: int = 1280
    kv_layout: KvLayout = "transposed"
    mask_as_input: bool = True

    def __post_init__(self) -> None:
        lengths = tuple(sorted(set(self.prefill_lengths)))
        object.__setattr__(self, "prefill_lengths", lengths)
        if not lengths or lengths[0] < 1:
            raise ConversionError(
                f"prefill lengths must be one or more positive numbers, got {self.prefill_lengths}",
                remedy="pass for instance --prefill 8 --prefill 128",
            )
        if self.kv_cache_length < lengths[-1] + 1:
            raise ConversionError(
                f"a KV cache of {self.kv_cache_length} slots cannot hold a prefill of "
                f"{lengths[-1]} tokens and a decoded one",
                remedy=f"pass --kv-cache {lengths[-1] + 1} or more, or a shorter --prefill",
            )
        if self.kv_layout not in ("transposed", "default"):
            raise ConversionError(
                f"unknown KV layout {self.kv_layout!r}",
                remedy="choose --kv-layout transposed or --kv-layout default",
            )


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes that a user named; None takes the card's, or the core's default."""

    prefill_lengths: Sequence[int] | None = None
    kv_cache_length: int | None = None
    kv_layout: KvLayout | None = None
    mask_as_input: bool | None = None


def complete(shapes: Shapes, base: SignatureOptions, context_length: int) -> SignatureOptions:
    """Completes the shapes that the user named; defaults never exceed the model's context."""
    kv_cache_length = shapes.kv_cache_length or min(base.kv_cache_length, context_length)
    prefill = shapes.prefill_lengths or [n for n in base.prefill_lengths if n < kv_cache_length]
    return SignatureOptions(
        prefill_lengths=tuple(prefill),
        kv_cache_length=kv_cache_length,
        kv_layout=shapes.kv_layout or base.kv_layout,
        mask_as_input=base.mask_as_input if shapes.mask_as_input is None else shapes.mask_as_input,
    )


def check_context(options: SignatureOptions, context_length: int) -> None:
    """Checks the cache against the model's context, in tokens.

    Raises:
        ConversionError: The KV cache is longer.
    """
    if options.kv_cache_length > context_length:
        raise ConversionError(
            f"a KV cache of {options.kv_cache_length} slots is longer than the model's context of"
            f" {context_length} tokens",
            remedy=f"pass --kv-cache {context_length} or less",
        )
