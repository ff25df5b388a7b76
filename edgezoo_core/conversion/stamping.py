"""A shallow graph becomes a deep one: the block that repeats is traced once and stamped.

Tracing and lowering cost time per layer, and every layer but the first and the last is the same.
So a model of equal blocks is traced with three: its first, its second, its last. The first two
prove what is then relied on: the second is the first with every reference moved by one block, so a
third, a fourth and so on are the second moved further. Where the proof fails, the caller traces all
layers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgezoo_core.conversion.floatgraph import FloatGraph
from edgezoo_core.conversion.periodicity import (
    CACHE,
    LAST,
    REPEATED,
    Blocks,
    cache_names,
    moved,
    prove,
    segment,
)


def deepen(graph: FloatGraph, block_scope: str, depth: int) -> FloatGraph:
    """Returns the graph of the model at full depth.

    Args:
        graph: A graph that was traced with the blocks 0, 1 and the last, as blocks 0 to 2.
        block_scope: A block's part of an operator's name, without its number.
        depth: Layers of the full model, more than `SHALLOW`.

    Raises:
        NotPeriodic: The blocks 0 and 1 are not the same up to a move by one.
    """
    return _Stamp(graph, *prove_periodic(graph, block_scope), block_scope, depth).deep()


def prove_periodic(graph: FloatGraph, block_scope: str) -> tuple[Blocks, dict[int, int]]:
    """Proves that the blocks of a shallow graph repeat.

    Returns:
        Where they stand, and what each hands on: tensor of block 0 -> tensor of block 1.

    Raises:
        NotPeriodic: They are not.
    """
    blocks = segment(graph, re.compile(re.escape(block_scope) + r"(\d+)(?=[/;]|$)"))
    return blocks, prove(graph, blocks)


class _Stamp:
    """Builds the deep graph from a shallow one whose blocks are proved."""

    def __init__(
        self,
        graph: FloatGraph,
        blocks: Blocks,
        handed: Mapping[int, int],
        scope: str,
        depth: int,
    ) -> None:
        self._shallow = graph
        self._blocks = blocks
        self._handed = handed
        self._depth = depth
        self._scope = re.compile(re.escape(scope) + r"(\d+)(?=[/;]|$)")
        self._scope_text = scope
        self._caches = cache_names(graph)
        self._model = copy.copy(graph.model)
        self._model.subgraphs = list(graph.model.subgraphs)
        self._main = copy.copy(graph.main)
        self._main.tensors = list(graph.main.tensors)
        self._model.subgraphs[0] = self._main
        self._constants = dict(graph.constants)
        #: For each stamped layer, tensor of block 1 -> its copy.
        self._copies: dict[int, dict[int, int]] = {}

    def deep(self) -> FloatGraph:
        """Returns the deep graph; the shallow one is used up."""
        operators = self._shallow.main.operators
        start, stop = self._blocks.spans[REPEATED]
        stamped = []
        for layer in range(REPEATED + 1, self._depth - 1):
            self._copies[layer] = {}
            stamped += [self._stamp(op, layer) for op in operators[start:stop]]
        last = [self._relink(op) for op in operators[stop:]]
        self._main.operators = [*operators[:stop], *stamped, *last]
        self._rename_last()
        self._main.inputs = self._repeated(list(self._shallow.main.inputs))
        self._main.outputs = self._repeated(list(self._shallow.main.outputs))
        self._model.signatureDefs = [self._signature()]
        return FloatGraph(self._model, self._constants)

    def _stamp(self, op: Any, layer: int) -> Any:
        made = copy.copy(op)
        made.inputs = np.array([self._input(int(i), layer) for i in op.inputs], np.int32)
        made.outputs = np.array([self._copy(int(i), layer) for i in op.outputs], np.int32)
        if isinstance(op.builtinOptions2, schema.StableHLOCompositeOptionsT):
            made.builtinOptions2 = copy.copy(op.builtinOptions2)
            index = op.builtinOptions2.decompositionSubgraphIndex
            self._model.subgraphs.append(self._model.subgraphs[index])
            made.builtinOptions2.decompositionSubgraphIndex = len(self._model.subgraphs) - 1
        return made

    def _input(self, index: int, layer: int) -> int:
        if self._blocks.origin.get(index) == REPEATED or self._is_own(index):
            return self._copy(index, layer)
        if index in self._handed:  # what block 0 hands to block 1, the layer before hands to this
            before = self._handed[index]
            return self._copies[layer - 1][before] if layer - 1 > REPEATED else before
        return index

    def _is_own(self, index: int) -> bool:
        """Whether a tensor is block 1's own: its parameters, its cache."""
        held = self._shallow.constants.get(index)
        if held is not None:
            return moved(held, REPEATED, LAST) != held
        name = self._caches.get(index)
        return name is not None and int(CACHE.findall(name)[0]) == REPEATED

    def _copy(self, index: int, layer: int) -> int:
        copies = self._copies[layer]
        if index not in copies:
            made = copy.copy(self._shallow.main.tensors[index])
            made.name = self._renamed(made.name, REPEATED, layer)
            self._main.tensors.append(made)
            copies[index] = len(self._main.tensors) - 1
            if index in self._shallow.constants:
                held = self._shallow.constants[index]
                self._constants[copies[index]] = moved(held, REPEATED, layer)
        return copies[index]

    def _relink(self, op: Any) -> Any:
        """Lets what follows block 1 read the last stamped layer in its place."""
        copies = self._copies[self._depth - 2] if self._depth - 2 > REPEATED else {}
        made = copy.copy(op)
        made.inputs = np.array(
            [
                copies.get(int(i), int(i))
                if self._blocks.origin.get(int(i)) == REPEATED
                else int(i)
                for i in op.inputs
            ],
            np.int32,
        )
        return made

    def _rename_last(self) -> None:
        last = self._depth - 1
        for index, tensor in enumerate(self._shallow.main.tensors):
            renamed = self._renamed(tensor.name, LAST, last)
            if renamed != tensor.name:
                made = copy.copy(tensor)
                made.name = renamed
                self._main.tensors[index] = made
            if index in self._constants:
                self._constants[index] = moved(self._constants[index], LAST, last)

    def _renamed(self, name: bytes, source: int, target: int) -> bytes:
        text = self._scope.sub(
            lambda m: f"{self._scope_text}{target if int(m[1]) == source else m[1]}", name.decode()
        )
        return CACHE.sub(lambda m: str(target) if int(m[0]) == source else m[0], text).encode()

    def _repeated(self, indices: Sequence[int]) -> Any:
        """Returns inputs or outputs with each run of block 1's caches followed by its copies."""
        result: list[int] = []
        run: list[int] = []
        for index in [*indices, -1]:
            if index >= 0 and self._is_repeated_cache(index):
                run.append(index)
                continue
            result += run
            for layer in self._copies:
                result += [self._copies[layer][i] for i in run]
            run = []
            if index >= 0:
                result.append(index)
        return np.array(result, np.int32)

    def _is_repeated_cache(self, index: int) -> bool:
        name = self._caches.get(index)
        return name is not None and int(CACHE.findall(name)[0]) == REPEATED

    def _signature(self) -> Any:
        made = copy.copy(self._shallow.signature)
        made.inputs = self._entries(made.inputs)
        made.outputs = self._entries(made.outputs)
        return made

    def _entries(self, entries: Sequence[Any]) -> list[Any]:
        last = self._depth - 1
        result = []
        for entry in entries:
            name = entry.name.decode()
            match = CACHE.search(name)
            block = int(match[0]) if match else None
            if block == REPEATED:
                result.append(entry)
                result += [
                    _entry(CACHE.sub(str(layer), name), copies[entry.tensorIndex])
                    for layer, copies in self._copies.items()
                ]
            elif block == LAST:
                result.append(_entry(CACHE.sub(str(last), name), entry.tensorIndex))
            else:
                result.append(entry)
        return sorted(result, key=lambda e: bytes(e.name))


def _entry(name: str, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), tensor
    return entry
