"""Rows of a weight: from the bytes of a checkpoint to the bytes of a .tflite.

The results equal ai-edge-quantizer 0.10's byte for byte (its naive_min_max_quantize, float_casting
and pack_data). Rows do not depend on each other, so chunks may have any height. Work goes in slabs
that stay in a core's cache: passes over memory cost most. Bytes and machine are little-endian.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgezoo_core.errors import ConversionError
from edgezoo_core.types import WeightFormat

Array = NDArray[Any]
Raw = bytes | memoryview | NDArray[np.uint8]

#: Half floats are read as integers: numpy has no bfloat16, and is slow to widen float16.
_STORED = {"float64": "<f8", "float32": "<f4", "float16": "<u2", "bfloat16": "<u2"}
#: Bytes of one element by dtype of the checkpoint.
DTYPES: Mapping[str, int] = {name: np.dtype(code).itemsize for name, code in _STORED.items()}
#: Elements of a slab, all of whose arrays fit 2 MiB of L2. Less loses more to numpy's calls.
_SLAB = 1 << 17


class UnusableValueError(Exception):
    """NaN, an infinity, or a value that float16 weights or scales cannot hold, at a chunk's row."""

    def __init__(self, row: int, column: int, value: float) -> None:
        super().__init__(f"{value} at row {row}, column {column}")
        self.row, self.column, self.value = row, column, value


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows as a .tflite stores them.

    Attributes:
        data: Contiguous: float32, float16 or int8 [n, columns], or of int4 uint8 [n, columns / 2],
            the even column in the low nibble.
        scales: float32 [n], float16 [n, columns / block_size], or None for floats.
    """

    data: Array
    scales: Array | None


def widen(raw: Raw, dtype: str, columns: int) -> Array:
    """Returns whole rows as float32 [n, columns], of float32 a view, read-only if `raw` is.

    float64 rounds to nearest, beyond float32 to infinity; the others are exact.
    """
    rows = np.frombuffer(raw, _STORED[dtype]).reshape(-1, columns)
    out = rows if dtype == "float32" else np.empty(rows.shape, np.float32)
    for part in _slabs(rows):
        _widen(rows[part], dtype, out[part])
    return out


def encode(values: Array, fmt: WeightFormat | None) -> Encoded:
    """Stores float32 rows [n, columns] in a format; None may return `values` itself.

    Raises:
        UnusableValueError: A value is NaN or infinite, or too large for a float16 weight or scale.
        ConversionError: The format is int4 and the number of columns odd.
    """
    return _encode(values, "float32", fmt)


def convert(raw: Raw, dtype: str, columns: int, fmt: WeightFormat | None) -> Encoded:
    """Returns `encode(widen(raw, dtype, columns), fmt)`; faster, and in less memory."""
    rows = np.frombuffer(raw, _STORED[dtype]).reshape(-1, columns)
    return _encode(rows, dtype, fmt)


def stored(codes: Array, scales: Array, fmt: WeightFormat) -> Encoded:
    """Returns integers as a .tflite stores them: codes, int8 [n, columns], float32 [n, blocks]."""
    data = codes if fmt.bits == 8 else _in_pairs(codes)
    return Encoded(data, scales.astype(np.float16) if fmt.block_size else scales.reshape(-1))


def decode(encoded: Encoded, fmt: WeightFormat) -> Array:
    """Returns what integers stand for, float32 [n, columns]."""
    data, scales = encoded.data, encoded.scales
    if scales is None:
        raise TypeError("floats stand for themselves")
    if fmt.bits == 4:
        low, high = (data << 4).astype(np.int8) >> 4, data.view(np.int8) >> 4
        data = np.stack([low, high], -1).reshape(len(data), -1)
    blocks = data.reshape(*scales.shape, -1) * scales.astype(np.float32)[..., None]
    return np.asarray(blocks.reshape(data.shape), np.float32)


def chunks(rows: int, height: int) -> list[tuple[int, int]]:
    """Cuts rows into chunks of `height` to `2 * height - 1`: the last takes the remainder."""
    starts = [i * height for i in range(max(1, rows // height))]
    return list(zip(starts, [*starts[1:], rows], strict=True))


def _slabs(rows: Array) -> Iterator[slice]:
    height = max(1, _SLAB // rows.shape[1])
    return (slice(start, start + height) for start in range(0, len(rows), height))


def _encode(rows: Array, dtype: str, fmt: WeightFormat | None) -> Encoded:
    # Overflow, NaN and division by a scale of zero are dealt with, not warned of.
    with np.errstate(all="ignore"):
        if fmt is not None and not fmt.is_float:
            return _integers(rows, dtype, fmt)
        return _floats(rows, dtype, f"float{fmt.bits}" if fmt else "float32")


def _widen(rows: Array, dtype: str, out: Array) -> Array:
    """Returns `rows` if they are float32, else `out` filled with them."""
    if dtype == "float32":
        return rows
    if dtype == "bfloat16":  # the upper half of a float32
        np.left_shift(rows, np.uint32(16), out=out.view(np.uint32))
    elif dtype == "float16" and _are_finite(rows.view(np.float16)):
        # Shift into place, clear three copies of the sign, mend the bias: faster than a cast.
        bits = out.view(np.int32)
        np.left_shift(rows.view(np.int16), np.int32(13), out=bits)
        np.bitwise_and(bits, ~0x70000000, out=bits)
        np.multiply(out, np.float32(2.0**112), out=out)
    else:
        with np.errstate(over="ignore"):
            np.copyto(out, rows.view(np.float16) if dtype == "float16" else rows, "same_kind")
    return out


def _floats(rows: Array, dtype: str, target: str) -> Encoded:
    same = dtype == target == "float32"
    data = np.ascontiguousarray(rows) if same else np.empty(rows.shape, target)
    for part in _slabs(rows):
        slab, out = rows[part], data[part]
        if target == "float32":
            _widen(slab, dtype, out)
        elif dtype == "bfloat16":  # "clip" only spares a copy: every index is in the table
            np.take(_half_of_bfloat16(), slab, out=out, mode="clip")
        elif dtype == "float16":
            out[:] = slab.view(np.float16)
        else:
            out[:] = _widen(slab, dtype, np.empty(slab.shape, np.float32))
        if not _are_finite(out):
            values = _widen(slab, dtype, np.empty(slab.shape, np.float32))
            _refuse(values, ~np.isfinite(out), part)
    return Encoded(data, None)


def _integers(rows: Array, dtype: str, fmt: WeightFormat) -> Encoded:
    count, columns = rows.shape
    if fmt.bits == 4 and columns % 2:
        message = f"rows of {columns} int4 weights do not end at a byte"
        raise ConversionError(message, remedy="use --engine litert, which packs them all as one")
    block = fmt.block_size or columns
    data = np.empty((count, columns * fmt.bits // 8), np.int8 if fmt.bits == 8 else np.uint8)
    scales = np.empty((count, columns // block), np.float16 if fmt.block_size else np.float32)
    scratch = np.empty((2, min(count, max(1, _SLAB // columns)), columns), np.float32)
    for part in _slabs(rows):
        quotients, other = scratch[:, : len(rows[part])]
        values = _widen(rows[part], dtype, quotients)
        divisors = _scales(values, fmt, other, part)
        scales[part] = divisors.reshape(len(values), -1)
        np.divide(values.reshape(-1, block), divisors, out=quotients.reshape(-1, block))
        np.rint(quotients, out=quotients)
        # Else |w / s| < limit + 0.5: a float32 scale is at least 1e-9 / 127, normal, and so off by
        # a factor of 1 +- 2**-24; a float16 one by 1 +- 2**-9 and, if subnormal, by 2**-25 more.
        if fmt.block_size and divisors.min() < 2.0**-20:
            np.clip(quotients, -8, 7, out=quotients)
        if fmt.bits == 8:
            np.copyto(data[part], quotients, casting="unsafe")
        else:
            data[part] = _in_pairs(quotients.astype(np.int8))
    return Encoded(data, scales if fmt.block_size else scales.reshape(-1))


def _in_pairs(codes: Array) -> Array:
    """Returns two codes in a byte, uint8 [n, columns / 2], the first in the low nibble."""
    pairs = codes.view(np.uint16) & 0x0F0F
    return (pairs | pairs >> 4).astype(np.uint8)


def _scales(values: Array, fmt: WeightFormat, scratch: Array, part: slice) -> Array:
    """Returns the scales, float32 [scales, 1], rounded as they are stored."""
    if fmt.block_size:
        # Numpy is slow to reduce short rows one by one. Block sizes are powers of two.
        bounds = np.abs(values, out=scratch).reshape(-1)
        for _ in range(fmt.block_size.bit_length() - 1):
            bounds = np.maximum(bounds[0::2], bounds[1::2])
    else:
        bounds = np.maximum(values.max(axis=1), -values.min(axis=1))
    if not np.isfinite(bounds).all():  # NaN comes through every maximum
        _refuse(values, ~np.isfinite(values), part)
    # A row of zeros has a scale, too: `min_bound` of its tensor_zp_scale_from_min_max.
    scales: Array = np.maximum(bounds, 1e-9) / (127 if fmt.bits == 8 else 7)
    if fmt.block_size:
        # To bfloat16, ties to even, and to float16: the kernels take 7 bits of mantissa.
        bits: Array = scales.view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        scales = bits.view(np.float32).astype(np.float16).astype(np.float32)
        if np.isinf(scales).any():  # only where a block's greatest is
            bad = np.where(np.isinf(scales), bounds, np.inf)[:, None]
            _refuse(values, np.abs(values).reshape(len(bad), -1) == bad, part)
    return scales[:, None]


@functools.cache
def _half_of_bfloat16() -> Array:
    """The float16 of every bfloat16, a third of the time of numpy's cast to look up."""
    return (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32).astype(np.float16)


def _are_finite(floats: Array) -> bool:
    """Whether there is no NaN or infinity: read as integers, these are the extremes of a sign."""
    signed, unsigned = (floats.view(f"{kind}{floats.itemsize}") for kind in "iu")
    above, below = np.array([np.inf, -np.inf], floats.dtype).view(unsigned.dtype)
    return bool(signed.max() < above and unsigned.max() < below)


def _refuse(values: Array, is_unusable: Array, part: slice) -> None:
    row, column = divmod(int(is_unusable.argmax()), values.shape[1])
    raise UnusableValueError(part.start + row, column, float(values[row, column]))
