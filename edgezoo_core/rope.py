"""Rotary position embedding: its base, its share of each head, and how it is scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every frequency divided by one factor (`rope_type` linear)."""

    factor: float

    def scaled(self, frequencies: Sequence[float]) -> list[float]:
        """Returns frequencies in radians per position, scaled."""
        return [f / self.factor for f in frequencies]


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long waves stretched, short ones kept, those between interpolated (`rope_type` llama3).

    Source: transformers.modeling_rope_utils, `_compute_llama3_parameters`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float

    def scaled(self, frequencies: Sequence[float]) -> list[float]:
        """Returns frequencies in radians per position, scaled."""
        return [self._scaled(f) for f in frequencies]

    def _scaled(self, frequency: float) -> float:
        waves = self.original_max_position_embeddings * frequency / (2 * math.pi)
        kept = (waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = min(max(kept, 0.0), 1.0)
        return (1 - kept) * frequency / self.factor + kept * frequency


#: Kinds of scaled rope by `rope_type`; their fields are those of config.json.
SCALINGS: Mapping[str, type[LinearScaling] | type[Llama3Scaling]] = {
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding.

    Attributes:
        theta: Base of the frequencies.
        partial_factor: Share of each head's dimensions that is rotated, in (0, 1].
        scaling: How the frequencies are changed for a longer context; None where they are not.
    """

    theta: float
    partial_factor: float
    scaling: LinearScaling | Llama3Scaling | None = None
