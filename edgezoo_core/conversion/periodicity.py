"""The proof that a block repeats: the second block of a shallow graph is the first, moved by one.

Every block reads its own parameters and its own cache, what all blocks share (positions, say, which
the first block computes), and what the block before handed on. Where the second block reads what
the first one computes, the first tells which it is: where it reads the same, it is shared, and then
no parameter or activation may be in it; where it reads what comes before all blocks, it is handed
on. Where the proof fails, the caller traces all layers.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgezoo_core.conversion.floatgraph import Constant, FloatGraph

#: Blocks that are traced: the first, the one that is repeated, the last.
SHALLOW = 3
FIRST, REPEATED, LAST = range(SHALLOW)
LAYER = re.compile(r"(?<=transformer_blocks\.)\d+")
CACHE = re.compile(r"(?<=kv_cache_[kv]_)\d+")


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where each block stands in a shallow graph.

    Attributes:
        spans: (start, stop) in the list of operators, by block.
        origin: Tensor -> block that computes it; tensors that no block computes are not in it.
    """

    spans: tuple[tuple[int, int], ...]
    origin: Mapping[int, int]


class NotPeriodic(Exception):  # noqa: N818 - an answer, not an error
    """The shallow graph does not prove that its second block repeats."""


def segment(graph: FloatGraph, scope: re.Pattern[str]) -> Blocks:
    """Splits the operators by block: by the highest block that an operator's name mentions."""
    main = graph.main
    labels: list[int | None] = []
    for op in main.operators:
        name = main.tensors[op.outputs[0]].name.decode()
        labels.append(max((int(n) for n in scope.findall(name)), default=None))
    starts = [i for i, label in enumerate(labels) if label is not None]
    if not starts:
        raise NotPeriodic("no operator is named after a block")
    current = None
    for i in range(
        starts[0], starts[-1] + 1
    ):  # in between, a nameless one belongs to its neighbour
        current = labels[i] = labels[i] if labels[i] is not None else current
    spans = []
    for block in range(SHALLOW):
        members = [i for i, label in enumerate(labels) if label == block]
        if not members or members != list(range(members[0], members[-1] + 1)):
            raise NotPeriodic(f"the operators of block {block} do not stand together")
        spans.append((members[0], members[-1] + 1))
    if any(a[1] != b[0] for a, b in itertools.pairwise(spans)):
        raise NotPeriodic("the blocks do not follow each other")
    origin = {
        int(tensor): block
        for block, (start, stop) in enumerate(spans)
        for op in main.operators[start:stop]
        for tensor in op.outputs
    }
    return Blocks(tuple(spans), origin)


def prove(graph: FloatGraph, blocks: Blocks) -> dict[int, int]:
    """Checks that block 1 is block 0 moved by one, and that what follows leans on it alike.

    Returns:
        Tensor of block 0 that is handed on to block 1 -> tensor that block 1 hands on in its turn.
    """
    return _Proof(graph, blocks).run()


class _Proof:
    """Finds each operator of block 1 in block 0, whose others compute what all blocks share."""

    def __init__(self, graph: FloatGraph, blocks: Blocks) -> None:
        self._graph = graph
        self._main = graph.main
        self._blocks = blocks
        self._caches = cache_names(graph)
        self._computed = {int(i) for op in graph.main.operators for i in op.outputs}
        #: Tensor of block 0 -> its counterpart in block 1.
        self._counterparts: dict[int, int] = {}
        #: What block 1 reads of block 0: the same as block 0 reads, or in place of what it reads.
        self._shared: set[int] = set()
        self._handed: dict[int, int] = {}

    def run(self) -> dict[int, int]:
        operators = self._main.operators
        first, second = (operators[slice(*self._blocks.spans[b])] for b in (FIRST, REPEATED))
        candidates = iter(first)
        for op in second:
            match = next((c for c in candidates if self._matches(c, op)), None)
            if match is None:
                raise NotPeriodic("an operator of block 1 is not in block 0")
            pairs = zip(match.outputs, op.outputs, strict=True)
            self._counterparts.update((int(x), int(y)) for x, y in pairs)
        if not self._shared.isdisjoint(self._own()):
            raise NotPeriodic("block 1 reads what may be another block's")
        if not self._counterparts.keys() >= self._handed.keys():
            raise NotPeriodic("block 1 does not hand on what it is handed")
        handed = {index: self._counterparts[index] for index in self._handed}
        self._check_what_follows(handed)
        self._check_inputs_and_outputs()
        return handed

    def _own(self) -> set[int]:
        """Returns what the parameters, the cache or the activations of block 0 have a part in."""
        own = {*self._handed, *self._handed.values()}
        own |= {i for i, c in self._graph.constants.items() if moved(c, FIRST, REPEATED) != c}
        own |= {i for i, n in self._caches.items() if int(CACHE.findall(n)[0]) == FIRST}
        for op in self._main.operators[: self._blocks.spans[FIRST][1]]:
            if not own.isdisjoint(map(int, op.inputs)):
                own |= set(map(int, op.outputs))
        return own

    def _matches(self, a: Any, b: Any) -> bool:
        """Whether operator `b` of block 1 is operator `a` of block 0; notes what it reads."""
        if not _same_operator(self._graph.model, a, b):
            return False
        shared: set[int] = set()
        handed: dict[int, int] = {}
        for x, y in zip(map(int, a.inputs), map(int, b.inputs), strict=True):
            if x == y and x in self._computed:
                shared.add(x)
            elif self._is_handed(x, y) and {**self._handed, **handed}.get(y, x) == x:
                handed[y] = x
            elif not self._is_moved(x, y):
                return False
        for x, y in zip(map(int, a.outputs), map(int, b.outputs), strict=True):
            if not self._is_alike(x, y) or not self._is_same_cache(x, y):
                return False
        self._shared |= shared
        self._handed |= handed
        return True

    def _is_handed(self, x: int, y: int) -> bool:
        """Whether block 1 reads of block 0 what block 0 reads of what comes before all blocks."""
        origin = self._blocks.origin
        return (
            origin.get(y) == FIRST
            and x in self._computed
            and x not in origin
            and self._is_alike(x, y)
        )

    def _is_moved(self, x: int, y: int) -> bool:
        """Whether block 1's operand `y` is block 0's `x`, moved by one block."""
        if x < 0 or y < 0:
            return x == y
        constants, origin = self._graph.constants, self._blocks.origin
        if not self._is_alike(x, y):
            return False
        if x in constants or y in constants:
            held = constants.get(x)
            return held is not None and moved(held, FIRST, REPEATED) == constants.get(y)
        if x in origin or y in origin:
            return origin.get(y) == REPEATED and self._counterparts.get(x) == y
        if x in self._caches or y in self._caches:
            return self._is_same_cache(x, y)
        tensors = self._main.tensors
        return x == y or _same_content(self._graph.model, tensors[x], tensors[y])

    def _is_alike(self, x: int, y: int) -> bool:
        return _same_tensor(self._main.tensors[x], self._main.tensors[y])

    def _is_same_cache(self, x: int, y: int) -> bool:
        """Whether both are the same kind of cache, each of its own block, or both are none."""
        left, right = self._caches.get(x), self._caches.get(y)
        if left is None or right is None:
            return left == right
        is_own = [int(CACHE.findall(name)[0]) for name in (left, right)] == [FIRST, REPEATED]
        return is_own and CACHE.sub(str(REPEATED), left) == right

    def _check_what_follows(self, handed: Mapping[int, int]) -> None:
        known = {FIRST: self._shared, REPEATED: set(handed.values())}
        for op in self._main.operators[self._blocks.spans[LAST][0] :]:
            for index in map(int, op.inputs):
                block = self._blocks.origin.get(index)
                if block in known and index not in known[block]:
                    raise NotPeriodic(f"what follows block 1 reads block {block} otherwise")

    def _check_inputs_and_outputs(self) -> None:
        if any(int(i) in self._blocks.origin for i in self._main.inputs):
            raise NotPeriodic("a block computes an input")
        for index in map(int, self._main.outputs):
            block = self._blocks.origin.get(index, LAST)
            if block != LAST and [str(block)] != CACHE.findall(self._caches.get(index, "")):
                raise NotPeriodic(f"block {block} computes an output that is not its cache")


def _same_tensor(a: Any, b: Any) -> bool:
    return (
        a.type == b.type
        and np.array_equal(_or_empty(a.shape), _or_empty(b.shape))
        and np.array_equal(_or_empty(a.shapeSignature), _or_empty(b.shapeSignature))
    )


def _or_empty(shape: Any) -> Any:
    return () if shape is None else shape


def _same_content(model: Any, a: Any, b: Any) -> bool:
    x, y = (model.buffers[t.buffer].data for t in (a, b))
    return x is not None and y is not None and bytes(x) == bytes(y)


def _same_operator(model: Any, a: Any, b: Any) -> bool:
    if a.opcodeIndex != b.opcodeIndex or len(a.inputs) != len(b.inputs):
        return False
    if len(a.outputs) != len(b.outputs) or not _same_fields(a.builtinOptions, b.builtinOptions):
        return False
    if isinstance(a.builtinOptions2, schema.StableHLOCompositeOptionsT):
        x, y = (model.subgraphs[o.builtinOptions2.decompositionSubgraphIndex] for o in (a, b))
        left, right = copy.copy(a.builtinOptions2), copy.copy(b.builtinOptions2)
        left.decompositionSubgraphIndex = right.decompositionSubgraphIndex = 0
        return _same_fields(left, right) and _same_subgraph(model, x, y)
    return _same_fields(a.builtinOptions2, b.builtinOptions2)


def _same_subgraph(model: Any, a: Any, b: Any) -> bool:
    if len(a.operators) != len(b.operators) or len(a.tensors) != len(b.tensors):
        return False
    if list(a.inputs) != list(b.inputs) or list(a.outputs) != list(b.outputs):
        return False
    same_tensors = all(
        _same_tensor(x, y) and bytes(_held(model, x)) == bytes(_held(model, y))
        for x, y in zip(a.tensors, b.tensors, strict=True)
    )
    return same_tensors and all(
        _same_operator(model, x, y)
        and list(x.inputs) == list(y.inputs)
        and list(x.outputs) == list(y.outputs)
        for x, y in zip(a.operators, b.operators, strict=True)
    )


def _held(model: Any, tensor: Any) -> Any:
    data = model.buffers[tensor.buffer].data
    return b"" if data is None else data


def _same_fields(a: Any, b: Any) -> bool:
    if a is None or b is None or type(a) is not type(b):
        return a is b or a == b
    if not hasattr(a, "__dict__"):
        return bool(np.array_equal(a, b))
    return all(_same_fields(x, getattr(b, name)) for name, x in vars(a).items())


def moved(constant: Constant, source: int, target: int) -> Constant:
    """Returns the same constant of another block; one of no block stays what it is."""
    match = LAYER.search(constant.parameter)
    if not match or int(match[0]) != source:
        return constant
    return replace(constant, parameter=LAYER.sub(str(target), constant.parameter))


def cache_names(graph: FloatGraph) -> dict[int, str]:
    """Returns tensor -> name of the KV cache that it takes in or gives out."""
    definition = graph.signature
    return {
        entry.tensorIndex: entry.name.decode()
        for entry in (*definition.inputs, *definition.outputs)
        if CACHE.search(entry.name.decode())
    }
