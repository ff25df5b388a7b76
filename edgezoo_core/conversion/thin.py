"""ai-edge-quantizer decides the graph, on weights of one row each.

What the quantizer does to a graph depends on the rules and the operators, not on how large a
weight is: it retypes the weight, adds its scales, sets a DEQUANTIZE before operators that compute
in float32. So it is given every weight as [1, 256], in a second instead of minutes, and the true
shapes are put back into what it returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgezoo_core.conversion import graph, quantization
from edgezoo_core.conversion.floatgraph import WEIGHT_INPUT, WEIGHT_OPERATORS, Constant
from edgezoo_core.conversion.merging import MergedGraph
from edgezoo_core.conversion.sharing import SharedQuantization
from edgezoo_core.errors import ConversionError, listing
from edgezoo_core.types import QuantPlan, WeightFormat, WeightRule

_THIN_COLUMNS = 256
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


def quantize(
    merged: MergedGraph, plan: QuantPlan, shapes: Mapping[str, tuple[int, ...]]
) -> QuantizedGraph:
    """Applies a plan.

    Args:
        merged: The float32 graph; used up.
        plan: The format of every weight.
        shapes: The shape of every parameter.

    Raises:
        ConversionError: A weight has no rule, a rule meets no weight, or the quantizer did not do
            what the rule says.
    """
    rules = _assign(merged, plan)
    names = _thin(merged, rules, shapes)
    model = merged.model
    formats = {rule.format for rule in rules.values() if rule.format is not None}
    if formats:
        taken = _take_decompositions(model)
        content = flatbuffer_utils.convert_object_to_bytearray(model)
        groups = [
            (f"^{f.name}@", operator, f)
            for f in sorted(formats, key=lambda f: f.name)
            for operator in sorted(set(WEIGHT_OPERATORS.values()))
        ]
        quantized = quantization.run(bytes(content), groups, plan.name)
        model = schema.ModelT.InitFromPackedBuf(quantized, 0)
        _give_decompositions(model, taken, merged.model.buffers)
    return _Restored(model, merged, rules, names, shapes).result()


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


def _take_decompositions(model: Any) -> tuple[list[Any], list[int]]:
    """Takes the decompositions of composite operators out: no rule names what is in them."""
    count = len(model.signatureDefs)
    indices = []
    for op in _composites(model, count):
        indices.append(op.builtinOptions2.decompositionSubgraphIndex)
        op.builtinOptions2.decompositionSubgraphIndex = count
    decompositions = model.subgraphs[count:]
    model.subgraphs = model.subgraphs[: count + 1]  # one stays, so that the references hold
    return decompositions, indices


def _give_decompositions(
    model: Any, taken: tuple[list[Any], list[int]], buffers: Sequence[Any]
) -> None:
    """Puts them back, and their constants, which the quantizer has not seen."""
    decompositions, indices = taken
    count = len(model.signatureDefs)
    places: dict[int, int] = {}
    for subgraph in {id(s): s for s in decompositions}.values():
        for tensor in subgraph.tensors:
            data = buffers[tensor.buffer].data
            if data is None:
                tensor.buffer = 0
                continue
            if tensor.buffer not in places:
                model.buffers.append(buffers[tensor.buffer])
                places[tensor.buffer] = len(model.buffers) - 1
            tensor.buffer = places[tensor.buffer]
    for op, index in zip(_composites(model, count), indices, strict=True):
        op.builtinOptions2.decompositionSubgraphIndex = index
    model.subgraphs = [*model.subgraphs[:count], *decompositions]


def _composites(model: Any, count: int) -> Iterator[Any]:
    for subgraph in model.subgraphs[:count]:
        for op in subgraph.operators:
            if isinstance(op.builtinOptions2, schema.StableHLOCompositeOptionsT):
                yield op


def _assign(merged: MergedGraph, plan: QuantPlan) -> dict[tuple[int, int], WeightRule]:
    """Finds the rule of each weight operator: (subgraph, position) -> rule."""
    rules = {(rule.parameter, rule.operator): rule for rule in plan.rules}
    assigned: dict[tuple[int, int], WeightRule] = {}
    for number, position, op in weight_operators(merged.model, len(merged.model.signatureDefs)):
        held = merged.constants.get((number, int(op.inputs[WEIGHT_INPUT])))
        if held is None:
            continue  # the product of two activations
        code = merged.model.operatorCodes[op.opcodeIndex].builtinCode
        rule = rules.get((held.parameter, WEIGHT_OPERATORS[code]))
        if rule is None:
            raise ConversionError(
                f"recipe {plan.name} has no rule for {held.parameter} in {WEIGHT_OPERATORS[code]}",
                remedy="correct the plugin's quant_recipe hook",
            )
        assigned[number, position] = rule
    unmet = [r for r in plan.rules if r not in set(assigned.values())]
    if unmet:
        names = listing(f"{r.parameter} ({r.operator})" for r in unmet)
        raise ConversionError(
            f"the converted graph has no operator for {names}",
            remedy="report it: the graph lost a weight, or folded it into another constant",
        )
    return assigned


def _thin(
    merged: MergedGraph,
    rules: Mapping[tuple[int, int], WeightRule],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[bytes, bytes]:
    """Gives each matrix one row of its own values; returns token -> name of each tensor.

    Names become tokens that carry the format, so that the quantizer's rules name what they mean.
    """
    model = merged.model
    names: dict[bytes, bytes] = {}
    for number, subgraph in enumerate(model.subgraphs[: len(model.signatureDefs)]):
        for index, tensor in enumerate(subgraph.tensors):
            token = b"t%d_%d_" % (number, index)
            names[token] = tensor.name
            tensor.name = token
    for number, position, op in weight_operators(model, len(model.signatureDefs)):
        rule = rules.get((number, position))
        if rule and rule.format:
            output = model.subgraphs[number].tensors[op.outputs[0]]
            output.name = rule.format.name.encode() + b"@" + output.name
    random = np.random.default_rng(0)
    buffers: dict[Constant, int] = {}
    for (number, index), held in merged.constants.items():
        tensor = model.subgraphs[number].tensors[index]
        if held not in buffers:
            # Values of its own: the quantizer makes one of buffers that are equal.
            size = _THIN_COLUMNS if held.is_matrix else int(held.stop or 0) - int(held.start or 0)
            buffer = schema.BufferT()
            buffer.data = random.random(size, np.float32).view(np.uint8)
            model.buffers.append(buffer)
            buffers[held] = len(model.buffers) - 1
        tensor.buffer = buffers[held]
        if held.is_matrix:
            if len(shapes[held.parameter]) != 2:
                raise ConversionError(
                    f"{held.parameter} has {len(shapes[held.parameter])} dimensions, expected 2",
                    remedy="use --engine litert",
                )
            tensor.shape = np.array([1, _THIN_COLUMNS], np.int32)
    return names


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
        matrix = StoredMatrix(held, rule.format, (shape[0], shape[1]))
        producer = producers.get(index)
        if producer is not None:
            subgraph.tensors[index].shape = np.array(shape, np.int32)
            index = int(producer.inputs[0])
        known = self._result.matrices.get((number, index))
        if known is not None:
            if known != matrix:
                raise _unexpected(f"{held.parameter} has two formats in one tensor")
            return
        tensor = subgraph.tensors[index]
        found = _describe(subgraph, tensor, is_dequantized=producer is not None)
        expected = quantization.expected(rule.format, (1, _THIN_COLUMNS))
        if found != expected:
            raise _unexpected(f"{held.parameter} is {found}, expected {expected}")
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


def _describe(subgraph: Any, tensor: Any, *, is_dequantized: bool) -> str:
    scales, block_size = graph.scales_of(subgraph, tensor)
    return quantization.describe(graph.DTYPES[tensor.type], scales, block_size, is_dequantized)


def _unexpected(problem: str) -> ConversionError:
    return ConversionError(
        f"ai-edge-quantizer did something that was not asked: {problem}",
        remedy="use --engine litert, and report it with the recipe and the versions",
    )
