"""Where a file keeps what a program writes, told by the operators that read it.

The file need not be laid out as the program does it: litert-torch's own path keeps the same
constants in another order. It must have the same operators on constants of the same forms.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from edgezoo_core import constants, decoder
from edgezoo_core.constants import Span
from edgezoo_core.conversion.program import Program, Vector
from edgezoo_core.errors import VerificationError


def relocate(program: Program, head: bytes, path: Path) -> Program:
    """Returns a program with the places of another file.

    Args:
        program: Where the rows of its own file stand.
        head: What that file begins with, its flatbuffer.
        path: The other file, of the same graph.

    Raises:
        VerificationError: Its graph is another one.
        ArtifactError: It is no sound .tflite.
    """
    from ai_edge_litert import schema_py_generated as schema

    found: dict[int, set[_Place]] = {}
    with decoder.mapped(path) as model:
        try:
            for start, place in _places(schema.Model.GetRootAs(head, 0), model):
                found.setdefault(start, set()).add(place)
        except _UnlikeError as e:
            raise VerificationError(
                f"{path} has another graph than this version makes: {e}",
                remedy="convert it again, or verify it with the versions of its manifest",
            ) from None
    starts = sorted(found)

    def placed(vector: Vector) -> Iterator[Vector]:
        # It may begin in the midst of a constant.
        start = starts[bisect.bisect_right(starts, vector.offset) - 1]
        for place in sorted(found[start]):
            yield replace(vector, offset=place.content + vector.offset - start)

    # What one file shares the other may have twice.
    matrices = (
        replace(m, offset=place.content, scales_offset=place.scales or None)
        for m in program.matrices
        for place in sorted(found[m.offset])
    )
    vectors = (moved for vector in program.vectors for moved in placed(vector))
    return replace(program, matrices=tuple(matrices), vectors=tuple(vectors))


class _Place(NamedTuple):
    """Where the other file has a constant, and its scales, 0 if it has none."""

    content: int
    scales: int


class _UnlikeError(Exception):
    """Two graphs differ; the message says where."""


def _places(ours: Any, theirs: Any) -> Iterator[tuple[int, _Place]]:
    """Yields where each constant stands in our file, and where in theirs."""
    a, b = decoder.signatures(ours), decoder.signatures(theirs)
    if a.keys() != b.keys():
        raise _UnlikeError(f"signatures {sorted(b)} in place of {sorted(a)}")
    pairs = [(a[name].graph, b[name].graph, name) for name in a]
    seen = set()
    while pairs:
        *numbers, name = pairs.pop()
        if tuple(numbers) in seen:
            continue
        seen.add(tuple(numbers))
        left, right = ours.Subgraphs(numbers[0]), theirs.Subgraphs(numbers[1])
        if left.OperatorsLength() != right.OperatorsLength():
            raise _UnlikeError(
                f"{right.OperatorsLength()} operators in place of {left.OperatorsLength()} in"
                f" {name}"
            )
        for number in range(left.OperatorsLength()):
            x, y = left.Operators(number), right.Operators(number)
            codes = constants.operator_code(ours, x), constants.operator_code(theirs, y)
            if codes[0] != codes[1] or x.InputsLength() != y.InputsLength():
                raise _UnlikeError(f"operator {number} of {name}")
            inner = constants.composite(x), constants.composite(y)
            if inner[0] and inner[1]:
                pairs.append((*(o.DecompositionSubgraphIndex() for o in inner if o), name))
            for operand in range(x.InputsLength()):
                if x.Inputs(operand) < 0:
                    continue
                tensors = left.Tensors(x.Inputs(operand)), right.Tensors(y.Inputs(operand))
                where = f"operand {operand} of operator {number} of {name}"
                yield from _constants((ours, theirs), (left, right), tensors, where)


def _constants(
    models: tuple[Any, Any], graphs: tuple[Any, Any], tensors: tuple[Any, Any], where: str
) -> Iterator[tuple[int, _Place]]:
    """Yields the places of an operand, if it is a constant."""
    pairs = tuple(zip(models, graphs, tensors, strict=True))
    ours, theirs = (constants.content(m.Buffers(t.Buffer())) for m, _, t in pairs)
    if ours is None and theirs is None:
        return
    forms = [(t.Type(), tuple(t.Shape(i) for i in range(t.ShapeLength()))) for t in tensors]
    scales = [_scales(*pair) for pair in pairs]
    if not ours or not theirs or ours[1] != theirs[1] or forms[0] != forms[1]:
        raise _UnlikeError(where)
    if [s and s[1] for s in scales[:1]] != [s and s[1] for s in scales[1:]]:
        raise _UnlikeError(f"scales of {where}")
    yield ours[0], _Place(theirs[0], scales[1][0] if scales[1] else 0)


def _scales(model: Any, graph: Any, tensor: Any) -> Span | None:
    """Returns where a tensor's scales stand: one for each block, or each row."""
    if details := constants.blocks(tensor):
        return constants.content(model.Buffers(graph.Tensors(details.Scales()).Buffer()))
    quantization = tensor.Quantization()
    return quantization and constants.vector(quantization, *constants.QUANTIZATION_SCALE)
