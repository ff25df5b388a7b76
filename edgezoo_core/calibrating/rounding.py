"""Weights rounded so that their errors make up for each other in what the layer gives.

A weight's error does harm as far as its channel is used, and what is lost in one channel can be
given back in those that are used together with it (GPTQ, https://arxiv.org/abs/2210.17323). Scales
are chosen first, for each row or block the one that loses least where channels count by how much
they are used: the largest weight need not fit. Then columns are rounded one after the other, the
most used first, and the error of each is spread over those to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from edgezoo_core.types import WeightFormat

#: What is added to the diagonal of second moments, of its mean: a few thousand tokens do not tell
#: apart as many channels. SmolLM2 in int4: mean KL 0.205 with 0.01, 0.195 with 0.1.
_DAMPING = 0.1
#: Columns that make up for each other: a wider matrix is taken in parts, since time grows with the
#: third power. 8192 columns take 0.8 GB meanwhile.
_WIDEST = 8192
#: Rows that are rounded together fit a core's cache; columns whose errors are spread together.
_ROWS, _COLUMNS = 1024, 32
#: Candidates for a scale, as the code that the largest weight would have.
_LARGEST = {
    4: (
        5.5,
        6.0,
        6.5,
        7.0,
        7.25,
        7.5,
        7.75,
        8.0,
        8.25,
        8.5,
        9.0,
        9.5,
        10.0,
        10.5,
        11.0,
        12.0,
        13.0,
    ),
    8: (127.0, 130.0, 134.0, 138.0, 144.0, 150.0, 158.0),
}
_SMALLEST = 1e-9  # of a row of zeros, as `edgezoo_core.conversion.rows` takes it


@dataclass(frozen=True, slots=True)
class Use:
    """How columns of a weight are used: what rounding needs of the second moments of its input.

    Attributes:
        importance: Second moment of each column, float32 [columns].
        order: Columns, the most important first, int64 [columns]; None if errors stay where they
            are, as in a table that is only looked up.
        factor: Upper Cholesky factor of the inverse of the second moments in that order, float32
            [columns, columns].
    """

    importance: torch.Tensor
    order: torch.Tensor | None = None
    factor: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight as integers.

    Attributes:
        codes: int8 [rows, columns].
        scales: float32 [rows, blocks], as the format stores them; one block unless it has more.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    def dequantized(self) -> torch.Tensor:
        """Returns what the codes stand for, float32 [rows, columns]."""
        blocks = self.codes.reshape(*self.scales.shape, -1) * self.scales[..., None]
        return blocks.reshape(self.codes.shape)


def spans(columns: int, fmt: WeightFormat, widest: int = _WIDEST) -> Iterator[tuple[int, int]]:
    """Cuts columns into as few equal parts as are no wider than `widest`, at ends of blocks."""
    unit = fmt.block_size or 1
    count = -(-columns // widest)
    width = -(-columns // (count * unit)) * unit
    return ((start, min(start + width, columns)) for start in range(0, columns, width))


def use(moments: torch.Tensor) -> Use:
    """Prepares rounding.

    Args:
        moments: Sums of products of the input's channels over tokens, float32 [columns, columns];
            used up.
    """
    diagonal = moments.diagonal()
    mean = diagonal.mean()
    if not float(mean) > 0:  # nothing ever arrives here
        return Use(torch.ones(len(moments)))
    diagonal += _DAMPING * mean
    importance = diagonal.clone()
    order = importance.argsort(descending=True, stable=True)
    lower = torch.linalg.cholesky(moments[order][:, order])
    return Use(importance, order, torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True))


def looked_up(columns: int) -> Use:
    """Returns the use of a table whose rows are taken as they are."""
    return Use(torch.ones(columns))


def rounded(weight: torch.Tensor, uses: list[Use], fmt: WeightFormat) -> Rounded:
    """Rounds a weight.

    Args:
        weight: Floats [rows, columns].
        uses: How its columns are used, one for each part that makes up for itself, in order.
        fmt: An integer format.
    """
    parts = torch.split(weight, _ROWS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each works on rows of its own
    try:
        with ThreadPoolExecutor(threads) as pool:
            done = list(pool.map(lambda rows: _rows(rows.float(), uses, fmt), parts))
    finally:
        torch.set_num_threads(threads)
    return Rounded(torch.cat([r.codes for r in done]), torch.cat([r.scales for r in done]))


def _rows(weight: torch.Tensor, uses: list[Use], fmt: WeightFormat) -> Rounded:
    importance = torch.cat([u.importance for u in uses])
    columns = weight.T.contiguous()  # a column at a time is rounded
    scales = _scales(columns, importance, fmt)
    steps = scales.repeat_interleave(len(columns) // len(scales), 0)
    codes = torch.empty(columns.shape, dtype=torch.int8)
    start = 0
    for part in uses:
        stop = start + len(part.importance)
        codes[start:stop] = _codes(columns[start:stop], steps[start:stop], part, fmt)
        start = stop
    return Rounded(codes.T.contiguous(), scales.T.contiguous())


def _scales(columns: torch.Tensor, importance: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """Returns scales, float32 [blocks, rows], of a weight [columns, rows]."""
    blocks = columns.reshape(-1, fmt.block_size or len(columns), columns.shape[1])
    weights = importance.reshape(len(blocks), -1, 1)
    largest = blocks.abs().amax(1).clamp_min(_SMALLEST)
    least = torch.full_like(largest, torch.inf)
    best = torch.empty_like(largest)
    for code in _LARGEST[fmt.bits]:
        scales = _stored(largest / code, fmt)
        steps = scales[:, None]
        lost = _nearest(blocks, steps, fmt).mul_(steps).sub_(blocks).square_().mul_(weights).sum(1)
        is_better = lost < least
        least, best = torch.where(is_better, lost, least), torch.where(is_better, scales, best)
    return best


def _stored(scales: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    if not fmt.block_size:
        return scales
    # To bfloat16 and to float16, as `edgezoo_core.conversion.rows` does.
    return scales.to(torch.bfloat16).half().float()


def _nearest(values: torch.Tensor, steps: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    limit = 2 ** (fmt.bits - 1) - 1
    # A block of next to nothing may have a scale of zero.
    return (values / steps).nan_to_num_(0.0).round_().clamp_(-limit - 1, limit)


def _codes(
    columns: torch.Tensor, steps: torch.Tensor, part: Use, fmt: WeightFormat
) -> torch.Tensor:
    """Returns codes, int8 [columns, rows]."""
    if part.order is None or part.factor is None:
        return _nearest(columns, steps, fmt).to(torch.int8)
    left, steps, factor = columns[part.order], steps[part.order], part.factor
    codes = torch.empty(left.shape, dtype=torch.int8)
    for start in range(0, len(left), _COLUMNS):
        stop = min(start + _COLUMNS, len(left))
        errors = torch.empty(stop - start, left.shape[1])
        for i in range(start, stop):
            code = _nearest(left[i], steps[i], fmt)
            codes[i] = code
            error = torch.sub(left[i], code.mul_(steps[i]), out=errors[i - start])
            error /= factor[i, i]
            left[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
        left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    result = torch.empty_like(codes)
    result[part.order] = codes
    return result
