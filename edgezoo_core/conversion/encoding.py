"""Rows of a tensor become bytes of the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgezoo_core.conversion import rows
from edgezoo_core.conversion.changes import Changes
from edgezoo_core.conversion.program import Matrix, Vector
from edgezoo_core.conversion.reading import columns_of
from edgezoo_core.conversion.rescaling import Floats, Rescaling
from edgezoo_core.conversion.rows import Encoded
from edgezoo_core.errors import CheckpointError, ConversionError
from edgezoo_core.recipe import FORMATS
from edgezoo_core.tensor_files import StoredTensor

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet


def encode(
    raw: bytes,
    tensor: StoredTensor,
    row: int,
    start: int,
    stop: int,
    target: Matrix | Vector,
    first: int,
    changes: Changes,
) -> list[tuple[int, memoryview]]:
    """Turns rows of a tensor into bytes of the file.

    Args:
        raw: A chunk of the tensor as stored.
        tensor: The tensor.
        row: The chunk's first row.
        start: First of the rows that are wanted.
        stop: One past the last.
        target: The matrix or vector that they belong to.
        first: Row of the target, for a vector element, where they go.
        changes: What becomes of the values on their way; adapters take the whole chunk.

    Returns:
        (byte of the file, bytes), data before scales.

    Raises:
        CheckpointError: A value is not finite, or too large for the format.
    """
    dtype = str(tensor.dtype)
    width = columns_of(tensor) * rows.DTYPES[dtype]
    if isinstance(target, Matrix) and not target.operation:
        fmt = FORMATS[target.format]
        rounded = changes.codes.rows(target.parameter, fmt, first, stop - start)
        if rounded:
            return _placed(rounded, target, first)
    values: Any = memoryview(raw)[(start - row) * width : (stop - row) * width]
    adapters = changes.adapters
    if adapters is not None and adapters.touches(tensor.name):
        merged = _merged(raw, tensor, row, adapters)[start - row : stop - row]
        values, dtype = np.ascontiguousarray(merged).view(np.uint8).reshape(-1), "float32"
    try:
        encoded = _stored(values, dtype, columns_of(tensor), target, first, changes.rescaling)
    except rows.UnusableValueError as e:
        raise _unusable(tensor, target, start, e) from e
    return _placed(encoded, target, first)


def _stored(
    values: Any,
    dtype: str,
    columns: int,
    target: Matrix | Vector,
    first: int,
    rescaling: Rescaling,
) -> Encoded:
    if isinstance(target, Vector):
        return rows.encode(
            vector(rows.widen(values, dtype, columns), target, first, rescaling), None
        )
    fmt = FORMATS[target.format]
    if not target.operation and not rescaling.touches(target.parameter):
        return rows.convert(values, dtype, columns, fmt)
    return rows.encode(matrix(rows.widen(values, dtype, columns), target, first, rescaling), fmt)


def matrix(values: Floats, target: Matrix, first: int, rescaling: Rescaling) -> Floats:
    """Returns rows of a parameter, float32 [n, columns], as the graph multiplies by them."""
    if target.operation:
        operand = np.float32(target.operand)
        values = values * operand if target.operation == "*" else values / operand
    return rescaling.matrix(target.parameter, first, values)


def vector(values: Floats, target: Vector, first: int, rescaling: Rescaling) -> Floats:
    """Returns elements of a parameter, float32 of any shape, as the graph holds them.

    Raises:
        ConversionError: They are rescaled, but the graph does not hold what is to be.
    """
    is_changed = rescaling.touches(target.parameter)
    is_centered = target.parameter in rescaling.centered
    if is_changed and (target.parameter in rescaling.columns or target.shift != is_centered):
        raise ConversionError(
            f"{target.parameter} is folded, but the graph holds something else of it",
            remedy="use a recipe that does not fold, and report it with the model",
        )
    values = values + np.float32(target.shift) if target.shift else values
    if not is_changed:
        return values
    start = target.start + first
    return rescaling.vector(target.parameter, start, values.reshape(-1)).reshape(values.shape)


def _placed(encoded: Encoded, target: Matrix | Vector, first: int) -> list[tuple[int, memoryview]]:
    if isinstance(target, Vector):
        return [(target.offset + 4 * first, _bytes(encoded.data))]
    fmt = FORMATS[target.format]
    width_bits = target.columns * (fmt.bits if fmt else 32)
    result = [(target.offset + first * width_bits // 8, _bytes(encoded.data))]
    if encoded.scales is not None:
        if target.scales_offset is None:
            raise ConversionError(
                f"{target.parameter} has no place for its scales",
                remedy="clear the cache: edgezoo cache clear",
            )
        size = encoded.scales[0].nbytes
        result.append((target.scales_offset + first * size, _bytes(encoded.scales)))
    return result


def _unusable(
    tensor: StoredTensor, target: Matrix | Vector, start: int, cause: rows.UnusableValueError
) -> CheckpointError:
    fmt = FORMATS[target.format] if isinstance(target, Matrix) else None
    return CheckpointError(
        f"{tensor.name} in {tensor.file} has the value {cause.value} at row {start + cause.row},"
        f" column {cause.column}, which {fmt.name if fmt else 'float32'} cannot hold",
        remedy="choose another recipe for this part"
        if np.isfinite(cause.value)
        else "the checkpoint is damaged or its training diverged: obtain another",
    )


def _merged(raw: bytes, tensor: StoredTensor, row: int, adapters: AdapterSet) -> Any:
    """Returns a chunk with the adapters merged in: float32 [rows, columns]."""
    import torch  # its matrix product, as peft uses it, decides the last bit

    torch.set_num_threads(1)
    values = torch.from_numpy(rows.widen(raw, str(tensor.dtype), columns_of(tensor)).copy())
    adapters.merge(tensor.name, row, values)
    return values.numpy()


def _bytes(values: Any) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
