"""The finished file, opened again: formats held against the program, rows against their source."""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.conversion import encoding, reading, streaming
from edgezoo_core.conversion.changes import NO_CHANGES, Changes
from edgezoo_core.conversion.program import Matrix, Program, Vector
from edgezoo_core.errors import ConversionError, listing
from edgezoo_core.recipe import FORMATS

_WEIGHT_OPERATORS = {
    schema.BuiltinOperator.FULLY_CONNECTED,
    schema.BuiltinOperator.EMBEDDING_LOOKUP,
}
_WEIGHT_INPUT = 1
_TYPES = {
    "none": schema.TensorType.FLOAT32,
    "fp16": schema.TensorType.FLOAT16,
    8: schema.TensorType.INT8,
    4: schema.TensorType.INT4,
}


def check(
    output: Path,
    program: Program,
    checkpoint: Checkpoint,
    changes: Changes = NO_CHANGES,
) -> None:
    """Checks a file that was filled.

    Every weight operator of every signature reads a matrix of the program, in its format and
    shape; of each matrix the first, the middle and the last row, and every vector, are what their
    source gives.

    Raises:
        ConversionError: Something is not as it must be; says what.
    """
    with output.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != program.size_bytes:
            raise _wrong([f"it has {size} bytes, expected {program.size_bytes}"])
        # Only the head is mapped: the weights are read by row.
        with mmap.mmap(file.fileno(), program.head_bytes, access=mmap.ACCESS_READ) as head:
            problems = list(_misread(head, program))
        problems += _differing(file.fileno(), program, checkpoint, changes)
    if problems:
        raise _wrong(problems)


def _misread(head: mmap.mmap, program: Program) -> Iterator[str]:
    """Yields what is wrong with the weights of the file's operators."""
    view = memoryview(head)
    try:
        model = schema.Model.GetRootAs(view)
        matrices = {m.offset: m for m in program.matrices}
        read: set[int] = set()
        for number in range(model.SignatureDefsLength()):
            definition = model.SignatureDefs(number)
            name = definition.SignatureKey().decode()
            subgraph = model.Subgraphs(definition.SubgraphIndex())
            for offset, found in _weights(model, subgraph, matrices):
                matrix = matrices.get(offset)
                if matrix is None:
                    yield f"{name}: an operator reads weights at byte {offset}, which are none"
                elif found != _expected(matrix):
                    yield f"{name}: {matrix.parameter} is {found}, expected {_expected(matrix)}"
                read.add(offset)
        yield from (
            f"no operator reads {m.parameter}" for o, m in matrices.items() if o not in read
        )
        del model
    finally:
        view.release()


def _weights(
    model: Any, subgraph: Any, known: Collection[int]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yields (byte of the weights, (type, shape, scales)) of each operator that reads some."""
    dequantized: dict[int, int] = {}
    codes = [model.OperatorCodes(i).BuiltinCode() for i in range(model.OperatorCodesLength())]
    for index in range(subgraph.OperatorsLength()):
        op = subgraph.Operators(index)
        code = codes[op.OpcodeIndex()]
        if code == schema.BuiltinOperator.DEQUANTIZE:
            dequantized[op.Outputs(0)] = op.Inputs(0)
        for position in range(op.InputsLength()):
            stored = dequantized.get(op.Inputs(position), op.Inputs(position))
            if stored < 0 or code == schema.BuiltinOperator.DEQUANTIZE:
                continue
            tensor = subgraph.Tensors(stored)
            offset = model.Buffers(tensor.Buffer()).Offset()
            is_weight = code in _WEIGHT_OPERATORS and position == _WEIGHT_INPUT
            if offset > 1 and (is_weight or offset in known):
                shape = tuple(tensor.ShapeAsNumpy().tolist())
                yield offset, (tensor.Type(), shape, _scales(tensor, subgraph))


def _scales(tensor: Any, subgraph: Any) -> tuple[int, int]:
    """Returns how many scales a tensor has, and how many columns share one (0: all)."""
    quantization = tensor.Quantization()
    if quantization is None:
        return 0, 0
    if quantization.DetailsType() == schema.QuantizationDetails.BlockwiseQuantization:
        details = schema.BlockwiseQuantization()
        table = quantization.Details()
        details.Init(table.Bytes, table.Pos)
        scales = subgraph.Tensors(details.Scales())
        return int(np.prod(scales.ShapeAsNumpy())), details.BlockSize()
    return quantization.ScaleLength(), 0


def _expected(matrix: Matrix) -> tuple[Any, ...]:
    fmt = FORMATS[matrix.format]
    shape = (matrix.rows, matrix.columns)
    if fmt is None or fmt.is_float:
        return _TYPES["fp16" if fmt else "none"], shape, (0, 0)
    block = fmt.block_size or 0
    count = matrix.rows * (matrix.columns // block if block else 1)
    return _TYPES[fmt.bits], shape, (count, block)


def _differing(
    file: int,
    program: Program,
    checkpoint: Checkpoint,
    changes: Changes,
) -> Iterator[str]:
    """Yields the matrices and vectors whose rows are not what their source gives."""
    for name, destinations in streaming.plan(program).items():
        for part in destinations:
            last = part.stop - 1
            rows = {part.start, (part.start + last) // 2, last}
            spans = (
                [(part.start, part.stop)]
                if isinstance(part.target, Vector)
                else [(row, row + 1) for row in sorted(rows)]
            )
            for start, stop in spans:
                encoded = _encoded(checkpoint, name, part, start, stop, changes)
                for offset, data in encoded:
                    if os.pread(file, len(data), offset) != bytes(data):
                        yield f"rows {start} to {stop} of {name} are not in {part.target.parameter}"


def _encoded(
    checkpoint: Checkpoint,
    name: str,
    part: streaming.Destination,
    start: int,
    stop: int,
    changes: Changes,
) -> Sequence[tuple[int, memoryview]]:
    tensor = checkpoint.tensor(name)
    first, last = start, stop
    if changes.adapters is not None and changes.adapters.touches(name):
        # Merged as it was: the same rows at the same time.
        first, last = next((a, b) for a, b in reading.chunk_rows(tensor) if a <= start < b)
    raw = reading.read_rows(checkpoint.folder / tensor.file, tensor, first, last)
    row = part.row + start - part.start
    return encoding.encode(raw, tensor, first, start, stop, part.target, row, changes)


def _wrong(problems: Sequence[str]) -> ConversionError:
    return ConversionError(
        f"the file came out wrong and was not kept: {listing(problems)}",
        remedy="report it with the model and the versions; use --engine litert",
    )
