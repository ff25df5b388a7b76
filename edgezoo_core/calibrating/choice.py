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

from edgezoo_core.calibrating import rounding
from edgezoo_core.folds import LARGEST
from edgezoo_core.types import WeightFormat

#: Whether activations are measured by their largest, and strengths: what won, on SmolLM2, among
#: more of both and other measures.
CANDIDATES = (
    *((False, strength) for strength in (0.2, 0.35, 0.5, 0.65)),
    *((True, strength) for strength in (0.35, 0.5, 0.65)),
)
#: Tokens and rows by which a candidate is judged: more take longer and choose alike. Rounding that
#: compensates takes longer by far, and is judged by fewer rows and on narrower parts.
_TOKENS, _ROWS, _COMPENSATED_ROWS, _COMPENSATED_COLUMNS = 128, 1024, 192, 1024


@dataclass(frozen=True, slots=True)
class Reader:
    """A weight that reads the fold's channels.

    Attributes:
        weight: float32 [rows, columns], some of its rows where it has many (see `thinned`).
        format: How it is stored and computed with; None for float32.
    """

    weight: torch.Tensor
    format: WeightFormat | None


def thinned(weight: torch.Tensor, *, is_compensated: bool = False) -> torch.Tensor:
    """Returns some rows of a matrix, evenly spread, as float32."""
    rows = _COMPENSATED_ROWS if is_compensated else _ROWS
    return weight[:: max(1, len(weight) // rows)].float()


def exponents(
    inputs: torch.Tensor,
    readers: Sequence[Reader],
    *,
    groups: int = 1,
    repeats: int = 1,
    is_compensated: bool = False,
) -> list[int]:
    """Returns an exponent of two for each channel of a fold.

    Args:
        inputs: What the readers read, float32 [T, columns].
        readers: All that read it.
        groups: Columns are channels in so many groups,
        repeats: each of which stands so many times in turn.
        is_compensated: Whether the weights' errors will make up for each other.
    """
    moments = inputs.T @ inputs if is_compensated else None
    judge = _Judge(inputs[:: max(1, len(inputs) // _TOKENS)], readers, moments)

    def loss(chosen: torch.Tensor) -> float:
        powers = torch.ldexp(torch.ones(len(chosen)), chosen).reshape(groups, 1, -1)
        return judge.loss(powers.expand(-1, repeats, -1).reshape(-1))

    best = torch.zeros(inputs.shape[1] // repeats, dtype=torch.int32)
    least = loss(best)
    for candidate in _candidates(inputs, readers, groups, repeats):
        lost = loss(candidate)
        if lost < least:
            best, least = candidate, lost
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


class _Judge:
    """Tells what factors cost, by the squared error of the outputs.

    It is not taken per token: where outputs are large an error does harm, too, and judged by its
    share of each token the model came out worse (SmolLM2: mean KL 0.0137 in place of 0.0117).
    """

    def __init__(
        self, inputs: torch.Tensor, readers: Sequence[Reader], moments: torch.Tensor | None
    ) -> None:
        self._inputs = inputs
        self._readers = readers
        self._exact = [inputs @ r.weight.T for r in readers]
        self._moments = moments

    def loss(self, powers: torch.Tensor) -> float:
        """Returns the error with columns multiplied by factors, float32 [columns]."""
        scaled = self._inputs / powers
        rounded = quantized_activations(scaled)
        uses: dict[WeightFormat, list[rounding.Use]] = {}
        total = 0.0
        for reader, right in zip(self._readers, self._exact, strict=True):
            fmt, weight = reader.format, reader.weight * powers
            if self._moments is None or fmt is None or fmt.is_float:
                weight = _weights(weight, fmt)
            else:
                if fmt not in uses:
                    uses[fmt] = self._uses(powers, self._moments, fmt)
                weight = rounding.rounded(weight, uses[fmt], fmt).dequantized()
            is_dynamic = fmt is not None and fmt.is_dynamic
            got = (rounded if is_dynamic else scaled) @ weight.T
            total += float((got - right).square().sum())
        return total

    def _uses(
        self, powers: torch.Tensor, moments: torch.Tensor, fmt: WeightFormat
    ) -> list[rounding.Use]:
        parts = rounding.spans(len(powers), fmt, _COMPENSATED_COLUMNS)
        return [rounding.use(moments[a:b, a:b] / powers[a:b, None] / powers[a:b]) for a, b in parts]


def quantized_activations(x: torch.Tensor) -> torch.Tensor:
    """Returns activations [T, columns] as XNNPACK's dynamic kernels have them: per token, int8."""
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
