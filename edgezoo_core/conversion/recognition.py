"""The stand-ins of a traced program are found again in what the compiler made of it.

Nothing is taken on trust: a matrix may only be read where its elements keep their places, each
uniform constant must be a parameter or a number of the program, and every parameter must be read
as often as before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from litert_converter.mlir import ir

from edgezoo_core.conversion.floatgraph import Constant, FloatGraph
from edgezoo_core.conversion.standins import StandIn, StandIns, names_of
from edgezoo_core.errors import ConversionError, listing
from edgezoo_core.types import Signature

_CONSTANTS = ("arith.constant", "tfl.pseudo_const")
#: A uniform constant of so many elements that is no stand-in must have been a weight.
_SIZABLE = 1 << 14
#: Operators that may read a matrix -> which argument it must be. Whatever reorders elements first
#: (a transpose, a flip) leaves no trace in a stand-in, whose elements are all the same.
_READERS = {"linear.default": 1, "embedding.default": 0, "embedding": 0}


def uses(
    program: torch.export.ExportedProgram, signature: Signature, standins: StandIns
) -> Counter[str]:
    """Counts the operators that read each parameter and that the outputs depend on.

    Raises:
        ConversionError: A matrix is read by an operator that may change it unseen.
    """
    canonical = _canonical_names(signature)
    parameters = {
        spec.arg.name: canonical[spec.target]
        for spec in program.graph_signature.input_specs
        if spec.kind == torch.export.graph_signature.InputKind.PARAMETER
    }
    uses: Counter[str] = Counter()
    for node in _needed(program):
        for source in node.all_input_nodes:
            if source.op == "placeholder" and source.name in parameters:
                name = parameters[source.name]
                uses[name] += 1
                if standins.by_name[name].is_matrix:
                    _check_reader(name, node, source, signature.name)
    return uses


def _check_reader(parameter: str, node: torch.fx.Node, source: torch.fx.Node, name: str) -> None:
    operator = getattr(node.target, "__name__", str(node.target))
    places = [place for place, argument in enumerate(node.args) if argument is source]
    if places != [_READERS.get(operator)]:
        raise _refused(
            f"{name} reads {parameter} in {operator}, and the engine knows a weight matrix only in"
            " a linear layer or an embedding"
        )


def _needed(program: torch.export.ExportedProgram) -> set[torch.fx.Node]:
    """Returns what the outputs depend on."""
    needed: set[torch.fx.Node] = set()
    pending = [n for n in program.graph.nodes if n.op == "output"]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return needed


def _canonical_names(signature: Signature) -> dict[str, str]:
    """Maps parameter names of the exported wrapper to those of the decoder inside of it."""
    exported = signature.module
    inner = next((m for m in exported.modules() if hasattr(m, "transformer_blocks")), exported)
    names = names_of(inner)
    parameters = dict(exported.named_parameters(remove_duplicate=False))
    own = [name for name, parameter in parameters.items() if id(parameter) not in names]
    if own:
        raise _refused(f"{signature.name} has parameters of its own: {listing(own)}")
    return {name: names[id(parameter)] for name, parameter in parameters.items()}


def check(graph: FloatGraph, uses: Mapping[str, int], signature: str) -> None:
    """Holds the parameters that a graph reads against those that the traced program read.

    Raises:
        ConversionError: A parameter is read less or more often than before.
    """
    found = graph.uses()
    wrong = [
        f"{name} is read {found[name]} times, expected {uses[name]}"
        for name in sorted({*found, *uses})
        if found[name] != uses[name]
    ]
    if wrong:
        raise _refused(f"the graph of {signature} lost track of its weights: {listing(wrong)}")


def externalize(
    module: Any,
    standins: StandIns,
    numbers: frozenset[float],
    uses: Mapping[str, int],
    signature: str,
) -> None:
    """Replaces each matrix's constant by a reference to the parameter, before it is written out.

    Args:
        module: After the passes.
        standins: What it was traced with.
        numbers: Of the program before the passes.
        uses: The parameters that it reads.
        signature: Its name.

    Raises:
        ConversionError: A large uniform constant is neither a parameter nor one of the numbers.
    """
    for op in list(_walk(operation(module))):
        if op.name not in _CONSTANTS:
            continue
        attribute, kind = op.attributes["value"], op.results[0].type
        if not isinstance(attribute, ir.DenseFPElementsAttr) or not attribute.is_splat:
            continue
        shape, value = tuple(kind.shape), float(attribute.get_splat_value().value)
        constant = _matrix(shape, value, standins, numbers, uses)
        if constant is None:
            if np.prod(shape, dtype=np.int64) >= _SIZABLE and value not in numbers:
                raise _refused(
                    f"a constant {list(shape)} of {signature}, all {value!r}, is no parameter"
                )
            continue
        external = ir.Attribute.parse(
            f'#tfl.external_buffer<group_name = "{constant.spelled()}", offset = 0,'
            f' length = {4 * int(np.prod(shape, dtype=np.int64))}, packing = "">'
        )
        with ir.InsertionPoint(op), op.location:
            replacement = ir.Operation.create(
                "tfl.external_const", results=[kind], attributes={"external_buffer": external}
            )
        op.results[0].replace_all_uses_with(replacement.results[0])
        op.erase()


def _matrix(
    shape: tuple[int, ...],
    value: float,
    standins: StandIns,
    numbers: frozenset[float],
    uses: Mapping[str, int],
) -> Constant | None:
    """Recognizes a uniform constant: a stand-in, or one that was folded with a known number."""
    standin = standins.matrix(value)
    if standin and standin.shape == shape:
        return Constant(standin.parameter)
    if len(shape) < 2 or np.prod(shape, dtype=np.int64) < _SIZABLE:
        return None
    folded = {
        constant
        for name in uses
        if standins.by_name[name].shape == shape
        for number in numbers - {0.0, 1.0, -1.0}
        if (constant := _folded(standins.by_name[name], number, value))
    }
    return folded.pop() if len(folded) == 1 else None


def _folded(standin: StandIn, number: float, value: float) -> Constant | None:
    """Returns the parameter times or through a number, if that gives a value.

    One value cannot always tell a quotient from a product with the reciprocal. The compiler makes
    divisions into products before it folds them, so the product is tried first.
    """
    own, operand = standin.values()[0], np.float32(number)
    with np.errstate(all="ignore"):
        reciprocal = np.float32(1) / operand
        results = {
            ("*", float(operand)): own * operand,
            ("*", float(reciprocal)): own * reciprocal,
            ("/", float(operand)): own / operand,
        }
    for (operation, number), result in results.items():
        if float(result) == value:
            return Constant(standin.parameter, operation=operation, operand=number)
    return None


def numbers(module: Any, standins: StandIns) -> frozenset[float]:
    """Lists the numbers of a lowered program that fill a constant and stand for nothing else."""
    found = set()
    for op in _walk(operation(module)):
        if op.name in (*_CONSTANTS, "stablehlo.constant"):
            attribute = op.attributes["value"]
            if isinstance(attribute, ir.DenseFPElementsAttr) and attribute.is_splat:
                found.add(float(attribute.get_splat_value().value))
    return frozenset(v for v in found if np.isfinite(v) and standins.matrix(v) is None)


def operation(module: Any) -> Any:
    """Returns a module of MLIR as an operation, which it may already be."""
    return module.operation if hasattr(module, "operation") else module


def _walk(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for op in list(block.operations):
                yield op.operation
                yield from _walk(op.operation)


def _refused(problem: str) -> ConversionError:
    return ConversionError(problem, remedy="use --engine litert, and report it with the model")
