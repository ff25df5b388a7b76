"""Every stored row, dequantized, against its source row.

This does not trust the arithmetic that wrote the file: it reads codes and scales as a runtime does
and asks whether each product is as near to its source as the format allows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgezoo_core.conversion import reading, rows
from edgezoo_core.conversion.program import Matrix, Program, Vector
from edgezoo_core.conversion.rescaling import UNCHANGED, Rescaling
from edgezoo_core.recipe import FORMATS
from edgezoo_core.types import Progress, RowSlice, WeightFormat, silent

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet
    from edgezoo_core.checkpoint import Checkpoint

Floats = npt.NDArray[np.float32]

#: Rounding of the quotient and of the scale itself, in steps.
_ROUNDING = 1e-3
#: Most that passes of a row whose errors make up for each other, in steps, root mean square: sound
#: rows stay below 1.01, rows of another source are about 3 away.
COMPENSATED_BOUND = 1.5
#: Scales of blocks are float16: the largest value of a block may lie beyond the last code by the
#: scale's own rounding times the number of codes.
_HALF_PRECISION = 2.0**-11


@dataclass(frozen=True, slots=True)
class MatrixError:
    """How far a stored matrix is from its source.

    Attributes:
        parameter: Name of the module's parameter.
        format: How it is stored.
        largest: Largest error in units of half a step; for floating-point formats, of half a unit
            in the last place. Up to 1 is as near as the format allows. Of weights whose errors
            make up for each other, the root mean square of a row, in whole steps.
        row: Where that is.
        is_compensated: Whether they do.
    """

    parameter: str
    format: str
    largest: float
    row: int
    is_compensated: bool = False

    @property
    def share(self) -> float:
        """The largest error as a share of the most that passes."""
        return self.largest / COMPENSATED_BOUND if self.is_compensated else self.largest

    def __str__(self) -> str:
        unit = "steps, root mean square" if self.is_compensated else "half steps"
        return f"{self.parameter} row {self.row}: {self.largest:.1f} {unit}"


def compare(
    output: Path,
    program: Program,
    checkpoint: Checkpoint,
    adapters: AdapterSet | None = None,
    rescaling: Rescaling = UNCHANGED,
    *,
    is_compensated: bool = False,
    progress: Progress = silent,
) -> list[MatrixError]:
    """Reads every row of every matrix and vector of a file.

    Args:
        output: The artifact.
        program: Where its rows stand.
        checkpoint: Where they come from.
        adapters: What was merged into them.
        rescaling: What they were multiplied by then.
        is_compensated: Whether integers were rounded so that their errors make up for each other.
        progress: Told how much of the file has been read.

    Returns:
        One entry per matrix and vector, in the order of the file.
    """
    source = _Source(program.sources, checkpoint, adapters)
    results = []
    done, total = 0, sum(m.size_bytes for m in program.matrices)
    with output.open("rb") as file:
        for matrix in program.matrices:
            results.append(_matrix(file.fileno(), matrix, source, rescaling, is_compensated))
            done += matrix.size_bytes
            progress.advance(done, total)
        vectors = (_vector(file.fileno(), v, source, rescaling) for v in program.vectors)
        return [*results, *vectors]


def _matrix(
    file: int, matrix: Matrix, source: _Source, rescaling: Rescaling, is_compensated: bool
) -> MatrixError:
    fmt = FORMATS[matrix.format]
    # What the graph multiplies by a number of its own was rounded to the nearest, as floats are.
    is_integer = fmt is not None and not fmt.is_float
    is_compensated = is_compensated and is_integer and not matrix.operation
    worst, place = 0.0, 0
    for first, values in source.chunks(matrix.parameter):
        expected = rescaling.matrix(matrix.parameter, first, _folded(values, matrix))
        errors = _errors(file, matrix, fmt, first, expected, is_compensated)
        row = int(errors.argmax())
        if errors[row] > worst or not np.isfinite(errors[row]):
            worst, place = float(errors[row]), first + row
    return MatrixError(matrix.parameter, matrix.format, worst, place, is_compensated)


def _errors(
    file: int,
    matrix: Matrix,
    fmt: WeightFormat | None,
    first: int,
    expected: Floats,
    is_compensated: bool,
) -> npt.NDArray[np.float64]:
    """Returns the error of each row, as `MatrixError.largest` counts it."""
    count = len(expected)
    if fmt is None or fmt.is_float:
        dtype = np.dtype(np.float16 if fmt else np.float32)
        width = matrix.columns * dtype.itemsize
        raw = os.pread(file, count * width, matrix.offset + first * width)
        stored = np.frombuffer(raw, dtype).reshape(count, -1).astype(np.float64)
        half = np.spacing(np.abs(expected.astype(dtype))).astype(np.float64) / 2
        return np.asarray((np.abs(stored - expected) / half).max(1))
    codes = _codes(file, matrix, fmt, first, count)
    scales = _scales(file, matrix, fmt, first, count)
    blocks = scales.shape[1]
    stored = (codes.reshape(count, blocks, -1) * scales[:, :, None]).reshape(count, -1)
    step = np.repeat(scales, matrix.columns // blocks, 1)
    slack = _ROUNDING + (2 ** (fmt.bits - 1) * _HALF_PRECISION * 2 if fmt.block_size else 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(stored - expected) / (step / 2)
    error = np.where(stored == expected, 0.0, error)
    if is_compensated:
        return np.asarray(np.sqrt(np.square(error).mean(1)) / 2)
    error -= slack
    return np.asarray(error.max(1))


def _codes(file: int, matrix: Matrix, fmt: WeightFormat, first: int, count: int) -> Any:
    width = matrix.columns * fmt.bits // 8
    raw = np.frombuffer(
        os.pread(file, count * width, matrix.offset + first * width), np.int8
    ).reshape(count, width)
    if fmt.bits == 8:
        return raw.astype(np.float64)
    # Two codes in a byte, the low half first.
    low, high = (raw << 4).astype(np.int8) >> 4, raw >> 4
    return np.stack([low, high], -1).reshape(count, -1).astype(np.float64)


def _scales(file: int, matrix: Matrix, fmt: WeightFormat, first: int, count: int) -> Any:
    """Returns scales, float64 [rows, blocks]."""
    dtype = np.dtype(np.float16 if fmt.block_size else np.float32)
    blocks = matrix.columns // fmt.block_size if fmt.block_size else 1
    width = blocks * dtype.itemsize
    raw = os.pread(file, count * width, int(matrix.scales_offset or 0) + first * width)
    return np.frombuffer(raw, dtype).reshape(count, blocks).astype(np.float64)


def _folded(source: Floats, matrix: Matrix) -> Floats:
    if not matrix.operation:
        return source
    operand = np.float32(matrix.operand)
    return source * operand if matrix.operation == "*" else source / operand


def _vector(file: int, vector: Vector, source: _Source, rescaling: Rescaling) -> MatrixError:
    chunks = [c.reshape(-1) for _, c in source.chunks(vector.parameter)]
    shifted = np.concatenate(chunks)[vector.start : vector.stop] + np.float32(vector.shift)
    expected = rescaling.vector(vector.parameter, vector.start, shifted)
    raw = os.pread(file, 4 * len(expected), vector.offset)
    stored = np.frombuffer(raw, np.float32).astype(np.float64)
    half = np.spacing(np.abs(expected)).astype(np.float64) / 2
    errors = np.abs(stored - expected) / half
    return MatrixError(vector.parameter, "none", float(errors.max()), int(errors.argmax()))


@dataclass(frozen=True, slots=True)
class _Source:
    """What the file should hold: rows of each parameter, as the checkpoint and adapters give."""

    slices: Mapping[str, tuple[RowSlice, ...]]
    checkpoint: Checkpoint
    adapters: AdapterSet | None

    def chunks(self, parameter: str) -> Iterator[tuple[int, Floats]]:
        """Yields (row of the parameter, some of its rows as float32)."""
        row = 0
        for part in self.slices[parameter]:
            tensor = self.checkpoint.tensor(part.name)
            height = max(1, (1 << 20) // max(1, reading.columns_of(tensor)))
            for start in range(part.start, part.stop, height):
                stop = min(start + height, part.stop)
                yield row, self._rows(part.name, start, stop)
                row += stop - start

    def _rows(self, name: str, start: int, stop: int) -> Floats:
        tensor = self.checkpoint.tensor(name)
        raw = reading.read_rows(self.checkpoint.folder / tensor.file, tensor, start, stop)
        values = rows.widen(memoryview(raw), str(tensor.dtype), reading.columns_of(tensor))
        values = np.array(values)
        if self.adapters and self.adapters.touches(name):
            import torch

            self.adapters.merge(name, start, torch.from_numpy(values))
        return values
