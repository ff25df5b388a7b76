"""The proof that a block repeats: two middle blocks of a shallow graph that differ by one step.

Where the proof fails, the caller traces all layers.
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

#: Blocks that are traced: first, two equal ones, last.
SHALLOW = 4
FIRST, PROOF, REPEATED, LAST = range(SHALLOW)
LAYER = re.compile(r"(?<=transformer_blocks\.)\d+")
CACHE = re.compile(r"(?<=kv_cache_[kv]_)\d+")


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where each block stands in a shallow graph.

    Attributes:
        spans: (start, stop) in the list of operators, by block.
        origin: Tensor -> (block, position of its operator in the block, output of the operator);
            tensors that belong to no block are not in it.
    """

    spans: tuple[tuple[int, int], ...]
    origin: Mapping[int, tuple[int, int, int]]


class NotPeriodic(Exception):  # noqa: N818 - an answer, not an error
    """The shallow graph does not prove that its middle block repeats."""


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
        tensor: (block, position, output)
        for block, (start, stop) in enumerate(spans)
        for position, op in enumerate(main.operators[start:stop])
        for output, tensor in enumerate(op.outputs)
    }
    return Blocks(tuple(spans), origin)


def prove(graph: FloatGraph, blocks: Blocks) -> None:
    """Checks that block 2 is block 1 moved by one, and how the last one leans on block 2."""
    main = graph.main
    first, second = (main.operators[slice(*blocks.spans[b])] for b in (PROOF, REPEATED))
    if len(first) != len(second):
        raise NotPeriodic("blocks 1 and 2 differ in length")
    for a, b in zip(first, second, strict=True):
        if not _same_operator(graph.model, a, b):
            raise NotPeriodic("blocks 1 and 2 differ in an operator")
        for x, y in zip([*a.inputs, *a.outputs], [*b.inputs, *b.outputs], strict=True):
            if not _same_moved(graph, blocks, int(x), int(y)):
                raise NotPeriodic("blocks 1 and 2 differ in an operand")
    for op in main.operators[blocks.spans[LAST][0] :]:
        for index in op.inputs:
            if blocks.origin.get(int(index), (FIRST,))[0] == PROOF:
                raise NotPeriodic("what follows block 2 reads block 1")
    for index in main.inputs:
        if index in blocks.origin:
            raise NotPeriodic("a block computes an input")
    names = cache_names(graph)
    for index in main.outputs:
        block = blocks.origin.get(int(index), (LAST,))[0]
        if block != LAST and [str(block)] != CACHE.findall(names.get(int(index), "")):
            raise NotPeriodic(f"block {block} computes an output that is not its cache")


def _same_moved(graph: FloatGraph, blocks: Blocks, x: int, y: int) -> bool:
    """Whether operand `y` of block 2 is operand `x` of block 1, moved by one block."""
    if x < 0 or y < 0:
        return x == y
    tensors = graph.main.tensors
    if not _same_tensor(tensors[x], tensors[y]):
        return False
    if x in graph.constants or y in graph.constants:
        held = graph.constants.get(x)
        return held is not None and moved(held, PROOF, REPEATED) == graph.constants.get(y)
    if x in blocks.origin and y in blocks.origin:
        (bx, px, ox), (by, py, oy) = blocks.origin[x], blocks.origin[y]
        if (bx, by) == (PROOF, REPEATED):
            return (px, ox) == (py, oy)
        if (bx, by) == (FIRST, FIRST):
            return x == y
        if (bx, by) == (FIRST, PROOF):  # what the block before handed on
            return (_length(blocks, bx) - px, ox) == (_length(blocks, by) - py, oy) and (
                _same_operator(
                    graph.model,
                    graph.main.operators[blocks.spans[bx][0] + px],
                    graph.main.operators[blocks.spans[by][0] + py],
                )
            )
        return False
    if x == y:
        return True
    names = cache_names(graph)
    if x in names or y in names:
        return CACHE.sub(str(REPEATED), names.get(x, "")) == names.get(y) and (
            int(CACHE.findall(names[x])[0]) == PROOF
        )
    return _same_content(graph.model, tensors[x], tensors[y])


def _length(blocks: Blocks, block: int) -> int:
    """Returns the number of operators of a block."""
    start, stop = blocks.spans[block]
    return stop - start


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
