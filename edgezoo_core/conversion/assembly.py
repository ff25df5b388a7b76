"""The quantized graph becomes a skeleton: the file without its weights, and its row program.

A file is a flatbuffer, the large constants that no weight is in, and then the weights, each
16-byte aligned and held once for all signatures. Scales stand inside of the flatbuffer; the program
knows where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgezoo_core.conversion.floatgraph import Constant
from edgezoo_core.conversion.graph import signatures
from edgezoo_core.conversion.program import Matrix, Program, Vector
from edgezoo_core.conversion.restoring import QuantizedGraph, StoredMatrix
from edgezoo_core.types import RowSlice, SignatureSpec

#: Plain constants from this size stand behind the flatbuffer, as in ai-edge-quantizer's files.
_PACKED_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A file without its weights.

    Attributes:
        head: What the file begins with; scales are zero.
        program: How the rest is filled.
        signatures: As they stand in it.
    """

    head: bytes
    program: Program
    signatures: tuple[SignatureSpec, ...]


def assemble(graph: QuantizedGraph, sources: Mapping[str, Sequence[RowSlice]]) -> Skeleton:
    """Lays out the file.

    Args:
        graph: The quantized graph; used up.
        sources: Parameter -> rows of the checkpoint.
    """
    buffers = _Buffers(graph)
    content = flatbuffer_utils.convert_object_to_bytearray(graph.model)
    head = _align(len(content))
    plain: dict[int, tuple[int, bytes]] = {}
    for index, data in buffers.plain.items():
        plain[index] = (head, data)
        head = _align(head + len(data))
    offset = head
    places: dict[int, tuple[int, int]] = {
        index: (start, len(data)) for index, (start, data) in plain.items()
    }
    for index, size in buffers.streamed.items():
        places[index] = (offset, size)
        offset = _align(offset + size)
    packed = schema.Model.GetRootAs(content)
    for index, (start, size) in places.items():
        flatbuffer_utils.update_packed_buffer(packed.Buffers(index), offset=start, size=size)
    matrices, vectors = _program(graph, buffers, places, _scale_offsets(graph, content))
    needed = {m.parameter for m in matrices} | {v.parameter for v in vectors}
    filled = bytearray(head)
    filled[: len(content)] = content
    for start, data in plain.values():
        filled[start : start + len(data)] = data
    end = max((start + size for start, size in places.values()), default=head)
    return Skeleton(
        bytes(filled),
        Program(
            head_bytes=head,
            size_bytes=max(end, head),
            matrices=tuple(matrices),
            vectors=tuple(vectors),
            sources={name: tuple(sources[name]) for name in sorted(needed)},
        ),
        signatures(graph.model),
    )


class _Buffers:
    """Renumbers the buffers: one for each constant, those without a user left out.

    Attributes:
        plain: Buffer -> content, of large constants that no weight is in.
        streamed: Buffer -> size in bytes, of what the checkpoint fills.
        matrices: Matrix -> buffer.
        block_scales: Matrix -> buffer of its block scales.
        vectors: Elements -> buffer.
    """

    def __init__(self, graph: QuantizedGraph) -> None:
        self.plain: dict[int, bytes] = {}
        self.streamed: dict[int, int] = {}
        self.matrices: dict[StoredMatrix, int] = {}
        self.block_scales: dict[StoredMatrix, int] = {}
        self.vectors: dict[Constant, int] = {}
        self._graph = graph
        self._old = graph.model.buffers
        self._new: list[Any] = [schema.BufferT()]
        self._renumbered: dict[int, int] = {}
        # Stamped layers share the decompositions of their composite operators.
        distinct = {id(s): (number, s) for number, s in enumerate(graph.model.subgraphs)}
        for number, subgraph in distinct.values():
            for index, tensor in enumerate(subgraph.tensors):
                tensor.buffer = self._place((number, index), tensor.buffer)
        for entry in graph.model.metadata or ():
            entry.buffer = self._kept(entry.buffer)
        graph.model.buffers = self._new

    def _place(self, key: tuple[int, int], old: int) -> int:
        graph = self._graph
        if key in graph.matrices:
            matrix = graph.matrices[key]
            return self._stream(self.matrices, matrix, _matrix_bytes(matrix))
        if key in graph.block_scales:
            matrix = graph.block_scales[key]
            rows, columns = matrix.shape
            block = matrix.format.block_size if matrix.format else None
            return self._stream(self.block_scales, matrix, 2 * rows * columns // (block or 1))
        if key in graph.vectors:
            held = graph.vectors[key]
            size = 4 * (int(held.stop or 0) - int(held.start or 0))
            return self._stream(self.vectors, held, size)
        if self._old[old].data is None:
            return 0
        return self._kept(old)

    def _stream(self, table: dict[Any, int], key: Any, size: int) -> int:
        if key not in table:
            table[key] = self._add(None)
            self.streamed[table[key]] = size
        return table[key]

    def _kept(self, old: int) -> int:
        if old not in self._renumbered:
            data = bytes(self._old[old].data)
            is_large = len(data) >= _PACKED_BYTES
            self._renumbered[old] = self._add(None if is_large else data)
            if is_large:
                self.plain[self._renumbered[old]] = data
        return self._renumbered[old]

    def _add(self, data: bytes | None) -> int:
        buffer = schema.BufferT()
        if data is None:
            buffer.offset = buffer.size = 1  # to be written at all; the true ones come later
        else:
            buffer.data = np.frombuffer(data, np.uint8)
        self._new.append(buffer)
        return len(self._new) - 1


def _matrix_bytes(matrix: StoredMatrix) -> int:
    rows, columns = matrix.shape
    bits = matrix.format.bits if matrix.format else 32
    return (rows * columns * bits + 7) // 8


def _scale_offsets(graph: QuantizedGraph, content: bytearray) -> dict[StoredMatrix, int]:
    """Finds where in the flatbuffer the scales of each matrix stand."""
    base = np.frombuffer(content, np.uint8).ctypes.data
    packed = schema.Model.GetRootAs(content)
    offsets: dict[StoredMatrix, int] = {}
    for (number, index), matrix in graph.matrices.items():
        if matrix.format is None or matrix.format.is_float or matrix.format.block_size:
            continue
        scales = packed.Subgraphs(number).Tensors(index).Quantization().ScaleAsNumpy()
        offsets[matrix] = int(scales.ctypes.data) - base
    return offsets


def _program(
    graph: QuantizedGraph,
    buffers: _Buffers,
    places: Mapping[int, tuple[int, int]],
    scale_offsets: Mapping[StoredMatrix, int],
) -> tuple[list[Matrix], list[Vector]]:
    matrices = []
    for matrix, buffer in buffers.matrices.items():
        offset, size = places[buffer]
        scales = scale_offsets.get(matrix)
        if matrix in buffers.block_scales:
            scales = places[buffers.block_scales[matrix]][0]
        matrices.append(
            Matrix(
                parameter=matrix.constant.parameter,
                format=matrix.format.name if matrix.format else "none",
                rows=matrix.shape[0],
                columns=matrix.shape[1],
                operation=matrix.constant.operation,
                operand=matrix.constant.operand,
                offset=offset,
                size_bytes=size,
                scales_offset=scales,
            )
        )
    vectors = [
        Vector(held.parameter, int(held.start or 0), int(held.stop or 0), held.shift,
               places[buffer][0])
        for held, buffer in buffers.vectors.items()
    ]  # fmt: skip
    return matrices, vectors


def _align(offset: int) -> int:
    return (offset + 15) & ~15
