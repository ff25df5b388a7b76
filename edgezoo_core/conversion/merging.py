"""The graphs of several signatures become one model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgezoo_core.conversion.floatgraph import Constant, FloatGraph
from edgezoo_core.conversion.sharing import SharedSubGraph

_MIN_RUNTIME = b"min_runtime_version"


@dataclass(slots=True)
class MergedGraph:
    """A model with all signatures; not frozen: the quantizer works on it.

    Attributes:
        model: The schema's ModelT. Constants that belong to parameters have no values.
        constants: (subgraph, tensor) -> what it holds.
    """

    model: Any
    constants: dict[tuple[int, int], Constant]


def merge(graphs: Sequence[FloatGraph]) -> MergedGraph:
    """Puts the signatures side by side; equal constants and equal operator codes become one."""
    return _Merger().merge(graphs)


class _Merger:
    def __init__(self) -> None:
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.description = b"edgezoo"
        self._model.buffers = [schema.BufferT()]
        self._model.operatorCodes = []
        self._buffers: dict[bytes, int] = {}
        self._codes: dict[tuple[Any, ...], int] = {}
        self._names: dict[bytes, int] = {}

    def merge(self, graphs: Sequence[FloatGraph]) -> MergedGraph:
        mains: list[Any] = []
        others: list[Any] = []
        definitions = []
        for number, graph in enumerate(graphs):
            first_other = len(graphs) + len(others)
            mains.append(self._subgraph(graph, graph.main, first_other))
            made: dict[int, Any] = {}  # stamped layers refer to one decomposition
            for subgraph in graph.model.subgraphs[1:]:
                if id(subgraph) not in made:
                    copied = self._subgraph(graph, subgraph, first_other)
                    made[id(subgraph)] = SharedSubGraph(**vars(copied))
                others.append(made[id(subgraph)])
            definition = copy.copy(graph.signature)
            definition.subgraphIndex = number
            definitions.append(definition)
        self._model.subgraphs = [*mains, *others]
        self._model.signatureDefs = definitions
        self._model.metadata = self._metadata(graphs)
        constants = {
            (number, index): held
            for number, graph in enumerate(graphs)
            for index, held in graph.constants.items()
        }
        return MergedGraph(self._model, constants)

    def _subgraph(self, graph: FloatGraph, subgraph: Any, first_other: int) -> Any:
        made = copy.copy(subgraph)
        is_main = subgraph is graph.main
        made.tensors = [
            self._tensor(graph, tensor, is_main and index in graph.constants)
            for index, tensor in enumerate(subgraph.tensors)
        ]
        made.operators = [self._operator(graph, op, first_other) for op in subgraph.operators]
        return made

    def _tensor(self, graph: FloatGraph, tensor: Any, is_parameter: bool) -> Any:
        made = copy.copy(tensor)
        made.externalBuffer = 0
        made.name = self._unique(tensor.name)
        data = graph.model.buffers[tensor.buffer].data
        if is_parameter:
            made.buffer = 0
        elif data is None:
            # Like the converter's own files: no two tensors share an empty buffer.
            self._model.buffers.append(schema.BufferT())
            made.buffer = len(self._model.buffers) - 1
        else:
            made.buffer = self._buffer(bytes(data))
        return made

    def _operator(self, graph: FloatGraph, op: Any, first_other: int) -> Any:
        made = copy.copy(op)
        made.opcodeIndex = self._code(graph.model.operatorCodes[op.opcodeIndex])
        if isinstance(op.builtinOptions2, schema.StableHLOCompositeOptionsT):
            made.builtinOptions2 = copy.copy(op.builtinOptions2)
            # Subgraph 0 is the signature's; the decompositions follow it in their order.
            made.builtinOptions2.decompositionSubgraphIndex += first_other - 1
        return made

    def _code(self, code: Any) -> int:
        key = (code.builtinCode, code.deprecatedBuiltinCode, code.customCode, code.version)
        if key not in self._codes:
            self._model.operatorCodes.append(code)
            self._codes[key] = len(self._model.operatorCodes) - 1
        return self._codes[key]

    def _buffer(self, content: bytes) -> int:
        if content not in self._buffers:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content, np.uint8)
            self._model.buffers.append(buffer)
            self._buffers[content] = len(self._model.buffers) - 1
        return self._buffers[content]

    def _unique(self, name: bytes) -> bytes:
        # ai-edge-quantizer knows tensors by name alone.
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        if not count:
            return name
        return self._unique(b"%s_%d" % (name, count))

    def _metadata(self, graphs: Sequence[FloatGraph]) -> list[Any]:
        merged: dict[bytes, bytes] = {}
        for graph in graphs:
            for entry in graph.model.metadata or ():
                value = bytes(graph.model.buffers[entry.buffer].data)
                if entry.name == _MIN_RUNTIME and entry.name in merged:
                    value = max(value, merged[entry.name], key=_version)
                merged[entry.name] = value
        entries = []
        for name, value in merged.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = name, self._buffer(value)
            entries.append(entry)
        return entries


def _version(text: bytes) -> tuple[int, ...]:
    return tuple(int(n) for n in text.rstrip(b"\0").split(b".") if n.isdigit())
