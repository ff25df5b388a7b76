"""The true shapes and names, put back into what ai-edge-quantizer made of one-row weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgezoo_core.conversion import graph, quantization
from edgezoo_core.conversion.floatgraph import WEIGHT_INPUT, WEIGHT_OPERATORS, Constant
from edgezoo_core.conversion.merging import MergedGraph
from edgezoo_core.conversion.sharing import SharedQuantization
from edgezoo_core.errors import ConversionError
from edgezoo_core.recipe import FORMATS
from edgezoo_core.types import WeightFormat, WeightRule

#: Columns of the one row that stands for a weight: every block size divides it.
THIN_COLUMNS = 256
_TOKEN = re.compile(rb"(?:\w+@)?t(\d+)_(\d+)_")


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix as the file stores it.

    Attributes:
        constant: What it holds.
        format: How; None is float32.
        shape: (rows, columns).
    """

    constant: Constant
    format: WeightFormat | None
    shape: tuple[int, int]


@dataclass(slots=True)
class QuantizedGraph:
    """The graph of the file that is to be; not frozen: assembly lays out its buffers.

    Attributes:
        model: The schema's ModelT: true shapes, scales and buffers without values.
        matrices: (subgraph, tensor) -> the matrix in it.
        block_scales: (subgraph, tensor) -> the matrix whose block scales are in it.
        vectors: (subgraph, tensor) -> the elements in it.
    """

    model: Any
    matrices: dict[tuple[int, int], StoredMatrix]
    block_scales: dict[tuple[int, int], StoredMatrix]
    vectors: dict[tuple[int, int], Constant]


def weight_operators(model: Any, count: int) -> Iterator[tuple[int, int, Any]]:
    """Yields (signature's subgraph, position among its operators but DEQUANTIZE, operator)."""
    for number, subgraph in enumerate(model.subgraphs[:count]):
        position = 0
        for op in subgraph.operators:
            code = model.operatorCodes[op.opcodeIndex].builtinCode
            if code == schema.BuiltinOperator.DEQUANTIZE:
                continue
            if code in WEIGHT_OPERATORS:
                yield number, position, op
            position += 1


def restore(
    model: Any,
    merged: MergedGraph,
    rules: Mapping[tuple[int, int], WeightRule],
    names: Mapping[bytes, bytes],
    shapes: Mapping[str, tuple[int, ...]],
) -> QuantizedGraph:
    """Restores a graph.

    Args:
        model: What the quantizer returned.
        merged: What it was given.
        rules: (subgraph, position among the operators) -> the rule of a weight operator.
        names: Token -> name of each tensor.
        shapes: Parameter -> shape.

    Raises:
        ConversionError: The quantizer did something else than the rules say.
    """
    return _Restored(model, merged, rules, names, shapes).result()


class _Restored:
    """Puts the true shapes and names back into what the quantizer returned."""

    def __init__(
        self,
        model: Any,
        merged: MergedGraph,
        rules: Mapping[tuple[int, int], WeightRule],
        names: Mapping[bytes, bytes],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._model = model
        self._merged = merged
        self._rules = rules
        self._names = names
        self._shapes = shapes
        self._result = QuantizedGraph(model, {}, {}, {})
        self._quantizations: dict[StoredMatrix, Any] = {}
        self._scales_of: dict[tuple[int, int], tuple[int, int | None]] = {}

    def result(self) -> QuantizedGraph:
        """Returns the restored graph."""
        count = len(self._model.signatureDefs)
        producers = [{int(i): op for op in s.operators for i in op.outputs} for s in
                     self._model.subgraphs[:count]]  # fmt: skip
        before = weight_operators(self._merged.model, count)
        after = weight_operators(self._model, count)
        for (number, position, old), (same, place, new) in zip(before, after, strict=True):
            if (number, position) != (same, place):
                raise _unexpected("it moved an operator")
            rule = self._rules.get((number, position))
            if rule is not None:
                held = self._merged.constants[number, int(old.inputs[WEIGHT_INPUT])]
                self._weight(number, int(new.inputs[WEIGHT_INPUT]), held, rule, producers[number])
        self._untouched()
        for subgraph in self._model.subgraphs[:count]:
            for tensor in subgraph.tensors:
                tensor.name = self._name(tensor.name)
        return self._result

    def _weight(
        self,
        number: int,
        index: int,
        held: Constant,
        rule: WeightRule,
        producers: Mapping[int, Any],
    ) -> None:
        subgraph = self._model.subgraphs[number]
        shape = self._shapes[held.parameter]
        matrix = StoredMatrix(held, _storage(rule.format), (shape[0], shape[1]))
        producer = producers.get(index)
        if producer is not None:
            subgraph.tensors[index].shape = np.array(shape, np.int32)
            index = int(producer.inputs[0])
        known = self._result.matrices.get((number, index))
        if known is not None and known != matrix:
            raise _unexpected(f"{held.parameter} has two formats in one tensor")
        tensor = subgraph.tensors[index]
        # A tied weight may be dequantized for one of its operators: as it was, before its first.
        scales, block = self._scales_of.setdefault(
            (number, index), graph.scales_of(subgraph, tensor)
        )
        found = quantization.describe(
            graph.DTYPES[tensor.type], scales, block, producer is not None
        )
        expected = quantization.expected(rule.format, (1, THIN_COLUMNS))
        if found != expected:
            raise _unexpected(f"{held.parameter} is {found}, expected {expected}")
        if known is not None:
            return
        tensor.shape = np.array(shape, np.int32)
        self._result.matrices[number, index] = matrix
        if rule.format is not None and not rule.format.is_float:
            self._scales(number, tensor, matrix)

    def _scales(self, number: int, tensor: Any, matrix: StoredMatrix) -> None:
        rows, columns = matrix.shape
        quantization = tensor.quantization
        block = matrix.format.block_size if matrix.format else None
        if block:
            index = int(quantization.details.scales)
            scales = self._model.subgraphs[number].tensors[index]
            scales.shape = np.array([rows, columns // block], np.int32)
            self._result.block_scales[number, index] = matrix
            return
        if matrix not in self._quantizations:
            if quantization.quantizedDimension != 0 or np.any(quantization.zeroPoint):
                raise _unexpected(f"{matrix.constant.parameter} is not symmetric by rows")
            shared = SharedQuantization()
            shared.scale = np.zeros(rows, np.float32)
            shared.zeroPoint = np.zeros(rows, np.int64)
            self._quantizations[matrix] = shared
        tensor.quantization = self._quantizations[matrix]

    def _untouched(self) -> None:
        """Matrices that other operators read stay float32; vectors stay as they are."""
        for (number, index), held in self._merged.constants.items():
            tensor = self._model.subgraphs[number].tensors[index]
            if tensor.type != schema.TensorType.FLOAT32 and (number, index) not in (
                self._result.matrices
            ):
                raise _unexpected(f"{held.parameter} was quantized without a rule")
            if not held.is_matrix:
                self._result.vectors[number, index] = held
            elif (number, index) not in self._result.matrices and self._is_read(number, index):
                shape = self._shapes[held.parameter]
                tensor.shape = np.array(shape, np.int32)
                self._result.matrices[number, index] = StoredMatrix(
                    held, None, (shape[0], shape[1])
                )

    def _is_read(self, number: int, index: int) -> bool:
        return any(index in op.inputs for op in self._model.subgraphs[number].operators)

    def _name(self, name: bytes) -> bytes:
        return _TOKEN.sub(lambda m: self._names[b"t%s_%s_" % (m[1], m[2])], name)


def _storage(fmt: WeightFormat | None) -> WeightFormat | None:
    """Returns the one format that stands for all that store a weight alike."""
    if fmt is None:
        return None
    return next(
        f
        for f in FORMATS.values()
        if f and (f.bits, f.is_float, f.block_size) == (fmt.bits, fmt.is_float, fmt.block_size)
    )


def _unexpected(problem: str) -> ConversionError:
    return ConversionError(
        f"ai-edge-quantizer did something that was not asked: {problem}",
        remedy="use --engine litert, and report it with the recipe and the versions",
    )
