"""How far each channel of a fold is scaled: the candidate that loses least.

A candidate takes 2 ** round(log2(a ** s / w ** (1 - s))) for a channel, where `a` is the largest or
the root mean square of its activations, `w` that of the weights that read it, and `s`, the
strength, says how much of the difference between channels moves into the weights (SmoothQuant,
https://arxiv.org/abs/2211.10438). Each is judged by what it is for: the output of the weights in
their own formats on the activations as the runtime quantizes them, against the output in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from edgezoo_core.folds import LARGEST
from edgezoo_core.types import WeightFormat

#: Whether activations are measured by their largest, and strengths: what won, on SmolLM2, among
#: more of both and other measures.
CANDIDATES = (
    *((False, strength) for strength in (0.2, 0.35, 0.5, 0.65)),
    *((True, strength) for strength in (0.35, 0.5, 0.65)),
)
#: Tokens and rows by which a candidate is judged: more take longer and choose alike.
_TOKENS, _ROWS = 128, 1024


@dataclass(frozen=True, slots=True)
class Reader:
    """A weight that reads the fold's channels.

    Attributes:
        weight: float32 [rows, columns], some of its rows where it has many (see `thinned`).
        format: How it is stored and computed with; None for float32.
    """

    weight: torch.Tensor
    format: WeightFormat | None


def thinned(weight: torch.Tensor) -> torch.Tensor:
    """Returns some rows of a matrix, evenly spread, as float32."""
    return weight[:: max(1, len(weight) // _ROWS)].float()


def exponents(
    inputs: torch.Tensor, readers: Sequence[Reader], *, groups: int = 1, repeats: int = 1
) -> list[int]:
    """Returns an exponent of two for each channel of a fold.

    Args:
        inputs: What the readers read, float32 [T, columns].
        readers: All that read it.
        groups: Columns are channels in so many groups,
        repeats: each of which stands so many times in turn.
    """
    judged = inputs[:: max(1, len(inputs) // _TOKENS)]
    exact = [judged @ r.weight.T for r in readers]
    best = torch.zeros(inputs.shape[1] // repeats, dtype=torch.int32)
    least = _loss(judged, readers, exact, best, groups, repeats)
    for candidate in _candidates(inputs, readers, groups, repeats):
        loss = _loss(judged, readers, exact, candidate, groups, repeats)
        if loss < least:
            best, least = candidate, loss
    return [int(k) for k in best]


def _candidates(
    inputs: torch.Tensor, readers: Sequence[Reader], groups: int, repeats: int
) -> Iterator[torch.Tensor]:
    def largest(x: torch.Tensor) -> torch.Tensor:
        return x.abs().amax(0)

    def spread(x: torch.Tensor) -> torch.Tensor:
        return x.square().mean(0).sqrt()

    weights = torch.cat([r.weight for r in readers])
    a = {
        by: _joined(measure(inputs), groups, repeats)
        for by, measure in ((True, largest), (False, spread))
    }
    w = _joined(spread(weights), groups, repeats)
    used = (a[True] > 0) & (w > 0)  # a channel that is never used has nothing to move
    if not bool(used.any()):
        return
    for by_largest, strength in CANDIDATES:
        logarithms = strength * a[by_largest].log2() - (1 - strength) * w.log2()
        # Scales of rows take up what all channels have in common.
        centred = logarithms - logarithms[used].median()
        whole = torch.where(used, centred, 0.0).round().clamp(-LARGEST, LARGEST)
        yield whole.to(torch.int32)


def _joined(values: torch.Tensor, groups: int, repeats: int) -> torch.Tensor:
    """Returns the largest of the columns that stand for one channel."""
    return values.reshape(groups, repeats, -1).amax(1).reshape(-1)


def _loss(
    inputs: torch.Tensor,
    readers: Sequence[Reader],
    exact: Sequence[torch.Tensor],
    chosen: torch.Tensor,
    groups: int,
    repeats: int,
) -> float:
    """Returns the squared error of the outputs.

    It is not taken per token: where outputs are large an error does harm, too, and judged by its
    share of each token the model came out worse (SmolLM2: mean KL 0.0137 in place of 0.0117).
    """
    powers = torch.ldexp(torch.ones(len(chosen)), chosen)
    powers = powers.reshape(groups, 1, -1).expand(-1, repeats, -1).reshape(-1)
    scaled = inputs / powers
    rounded = _activations(scaled)
    total = 0.0
    for reader, right in zip(readers, exact, strict=True):
        weight = _weights(reader.weight * powers, reader.format)
        is_dynamic = reader.format is not None and reader.format.is_dynamic
        got = (rounded if is_dynamic else scaled) @ weight.T
        total += float((got - right).square().sum())
    return total


def _activations(x: torch.Tensor) -> torch.Tensor:
    """Returns activations as XNNPACK's dynamic kernels quantize them: per token, asymmetric."""
    low, high = x.amin(1, keepdim=True).clamp_max(0), x.amax(1, keepdim=True).clamp_min(0)
    step = ((high - low) / 255).clamp_min(1e-30)
    zero = (-low / step).round()
    codes = ((x / step).round() + zero).clamp(0, 255)
    return (codes - zero) * step


def _weights(weight: torch.Tensor, fmt: WeightFormat | None) -> torch.Tensor:
    """Returns weights as a format stores them, within the rounding of its scales."""
    if fmt is None:
        return weight
    if fmt.is_float:
        return weight.half().float()
    limit = 2 ** (fmt.bits - 1) - 1
    blocks = weight.reshape(len(weight), -1, fmt.block_size or weight.shape[1])
    step = (blocks.abs().amax(2, keepdim=True) / limit).clamp_min(1e-30)
    codes = (blocks / step).round().clamp(-limit - 1, limit)
    stored: torch.Tensor = (codes * step).reshape(weight.shape)
    return stored
