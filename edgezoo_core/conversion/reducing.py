"""The weight operators alone: all that ai-edge-quantizer has to see of a graph.

Its rules here name operators that take weights, and what it does for one of them (retype the
weight, add scales, set a DEQUANTIZE before it) depends on that operator and on who shares its
weight. A graph of these operators alone is a tenth of the whole, and reading and writing graphs is
what the quantizer spends its time on.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgezoo_core.conversion.floatgraph import WEIGHT_OPERATORS
from edgezoo_core.errors import ConversionError


class Reduced:
    """The weight operators of a model.

    Args:
        model: A ModelT; not changed.
        chosen: (subgraph, position among its operators) of the operators.

    Attributes:
        model: A ModelT with these operators alone.
    """

    def __init__(self, model: Any, chosen: Collection[tuple[int, int]]) -> None:
        self._whole = model
        self._buffers: list[Any] = [schema.BufferT()]
        self._moved: dict[int, int] = {}
        #: For each subgraph: positions of its operators, and tensor there -> tensor of the whole.
        self._positions: list[list[int]] = []
        self._tensors: list[list[int]] = []
        self.model = copy.copy(model)
        self.model.metadata = None
        self.model.subgraphs, self.model.signatureDefs = [], []
        for definition in model.signatureDefs:
            number = definition.subgraphIndex
            self._reduce(number, definition, sorted(p for n, p in chosen if n == number))
        self.model.buffers = self._buffers

    def _reduce(self, number: int, definition: Any, positions: list[int]) -> None:
        whole = self._whole.subgraphs[number]
        operators = [whole.operators[p] for p in positions]
        used = list(
            dict.fromkeys(int(i) for op in operators for i in (*op.inputs, *op.outputs) if i >= 0)
        )
        places = {index: place for place, index in enumerate(used)}
        made = copy.copy(whole)
        made.tensors = [self._tensor(whole.tensors[i]) for i in used]
        made.operators = [_relinked(op, places) for op in operators]
        produced = {int(i) for op in operators for i in op.outputs}
        held = {i for i in used if self._whole.buffers[whole.tensors[i].buffer].data is not None}
        made.inputs = np.array([places[i] for i in used if i not in produced | held], np.int32)
        made.outputs = np.array([places[i] for i in used if i in produced], np.int32)
        signature = copy.copy(definition)
        signature.inputs = [_entry(made, i) for i in made.inputs]
        signature.outputs = [_entry(made, i) for i in made.outputs]
        self.model.subgraphs.append(made)
        self.model.signatureDefs.append(signature)
        self._positions.append(positions)
        self._tensors.append(used)

    def _tensor(self, tensor: Any) -> Any:
        made = copy.copy(tensor)
        buffer = self._whole.buffers[tensor.buffer]
        if buffer.data is None:
            self._buffers.append(schema.BufferT())
            made.buffer = len(self._buffers) - 1
            return made
        if tensor.buffer not in self._moved:
            self._buffers.append(buffer)
            self._moved[tensor.buffer] = len(self._buffers) - 1
        made.buffer = self._moved[tensor.buffer]
        return made

    def splice(self, quantized: Any) -> Any:
        """Returns the whole model with what the quantizer made of its operators.

        Raises:
            ConversionError: The quantizer returned other operators.
        """
        result = copy.copy(self._whole)
        result.buffers = list(self._whole.buffers)
        result.operatorCodes = list(self._whole.operatorCodes)
        result.subgraphs = list(self._whole.subgraphs)
        splicing = _Splicing(quantized, result)
        for number, definition in enumerate(self._whole.signatureDefs):
            index = definition.subgraphIndex
            result.subgraphs[index] = splicing.subgraph(
                result.subgraphs[index],
                quantized.subgraphs[number],
                self._positions[number],
                self._tensors[number],
            )
        return result


class _Splicing:
    """Carries operators, tensors and buffers from a quantized model into the whole one."""

    def __init__(self, quantized: Any, result: Any) -> None:
        self._quantized = quantized
        self._result = result
        self._buffers: dict[int, int] = {}

    def subgraph(self, whole: Any, quantized: Any, positions: list[int], tensors: list[int]) -> Any:
        made = copy.copy(whole)
        made.tensors = list(whole.tensors)
        places: dict[int, int] = {}
        for index, tensor in enumerate(quantized.tensors):
            moved = copy.copy(tensor)
            is_constant = self._quantized.buffers[tensor.buffer].data is not None
            moved.buffer = self._buffer(tensor.buffer) if is_constant else 0
            if index >= len(tensors):  # the quantizer's own
                made.tensors.append(moved)
                places[index] = len(made.tensors) - 1
                continue
            places[index] = tensors[index]
            if not is_constant:
                moved.buffer = whole.tensors[tensors[index]].buffer
            made.tensors[tensors[index]] = moved
        before: dict[int, list[Any]] = {}
        pending: list[Any] = []
        remaining = iter(positions)
        for op in quantized.operators:
            carried = _relinked(op, places)
            carried.opcodeIndex = self._code(self._quantized.operatorCodes[op.opcodeIndex])
            pending.append(carried)
            if self._quantized.operatorCodes[op.opcodeIndex].builtinCode in WEIGHT_OPERATORS:
                before[next(remaining, -1)] = pending
                pending = []
        if pending or sorted(before) != positions:
            raise ConversionError(
                "ai-edge-quantizer returned other operators than it was given",
                remedy="use --engine litert, and report it with the recipe and the versions",
            )
        # Scales are named by the index of their tensor.
        for index in (places[i] for i in range(len(quantized.tensors))):
            _renumber_scales(made.tensors[index], places)
        made.operators = [
            spliced
            for position, op in enumerate(whole.operators)
            for spliced in before.get(position, [op])
        ]
        return made

    def _buffer(self, index: int) -> int:
        if index not in self._buffers:
            self._result.buffers.append(self._quantized.buffers[index])
            self._buffers[index] = len(self._result.buffers) - 1
        return self._buffers[index]

    def _code(self, code: Any) -> int:
        for index, known in enumerate(self._result.operatorCodes):
            if (known.builtinCode, known.version) == (code.builtinCode, code.version):
                return index
        self._result.operatorCodes.append(code)
        return len(self._result.operatorCodes) - 1


def _renumber_scales(tensor: Any, places: Mapping[int, int]) -> None:
    details = tensor.quantization.details if tensor.quantization else None
    if isinstance(details, schema.BlockwiseQuantizationT):
        tensor.quantization = copy.copy(tensor.quantization)
        tensor.quantization.details = copy.copy(details)
        tensor.quantization.details.scales = places[details.scales]
        if details.zeroPoints >= 0:
            tensor.quantization.details.zeroPoints = places.get(
                details.zeroPoints, details.zeroPoints
            )


def _relinked(op: Any, places: Mapping[int, int]) -> Any:
    made = copy.copy(op)
    made.inputs = np.array([places[int(i)] if i >= 0 else -1 for i in op.inputs], np.int32)
    made.outputs = np.array([places[int(i)] for i in op.outputs], np.int32)
    return made


def _entry(subgraph: Any, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = subgraph.tensors[index].name, int(index)
    return entry
