"""One signature becomes a graph without weights: torch.export, lowering, the TFL passes.

The steps are litert-torch's own. What differs: parameters are stand-ins (see `standins`), so a
graph of any model fits in a few megabytes, and when the passes are done each stand-in is found
again and named after its parameter. One that cannot be found again stops the conversion.
"""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from litert_converter.mlir import ir, passmanager
from litert_converter.mlir._mlir_libs import converter_api_ext as converter
from litert_torch import backend, fx_infra
from litert_torch._convert import core, litert_converter
from litert_torch._convert import signature as litert_signature
from litert_torch.backend import inline_consts, lowerings

from edgezoo_core.conversion import floatgraph
from edgezoo_core.conversion.floatgraph import Constant, FloatGraph
from edgezoo_core.conversion.shallow import block_scope, is_uniform, truncate
from edgezoo_core.conversion.periodicity import NotPeriodic
from edgezoo_core.conversion.traced import TracedSignature
from edgezoo_core.conversion.standins import StandIns, install, names_of
from edgezoo_core.errors import ConversionError, listing
from edgezoo_core.types import Progress, Signature, silent

logger = logging.getLogger(__name__)

_PLACEHOLDER = inline_consts.tensor_lowering_placeholder
_CONSTANTS = ("arith.constant", "tfl.pseudo_const")
#: A uniform constant of so many elements that is no stand-in must have been a weight.
_SIZABLE = 1 << 14


#: From a decoder to its signatures.
SignaturesOf = Callable[[Any], Sequence[Signature]]


def trace_model(
    module: Any,
    signatures_of: SignaturesOf,
    wanted: Callable[[int], bool] = lambda index: True,
    *,
    may_stamp: bool = True,
    progress: Progress = silent,
) -> list[TracedSignature]:
    """Traces signatures of a decoder, with few of its layers where these prove the rest.

    Args:
        module: The decoder, parameters on meta; used up.
        signatures_of: Its signatures.
        wanted: Which of them, by index.
        may_stamp: Whether the signatures' wrapper treats all layers alike.
        progress: Told of each signature.

    Raises:
        ConversionError: A weight cannot be found again in a graph.
    """
    if may_stamp and is_uniform(module):
        try:
            return _trace_all(truncate(module), signatures_of, wanted, block_scope(module),
                              len(module.transformer_blocks), progress)  # fmt: skip
        except NotPeriodic as e:
            logger.info("all layers are traced: %s", e)
    return _trace_all(module, signatures_of, wanted, None, 0, progress)


def _trace_all(
    module: Any,
    signatures_of: SignaturesOf,
    wanted: Callable[[int], bool],
    scope: str | None,
    depth: int,
    progress: Progress,
) -> list[TracedSignature]:
    standins = install(module)
    parameters = tuple((s.parameter, s.shape) for s in standins.by_name.values())
    traced = []
    for index, signature in enumerate(signatures_of(module)):
        if wanted(index):
            progress(f"tracing {signature.name}")
            content = trace(signature, standins)
            made = TracedSignature(signature.name, content, parameters, scope)
            if scope is not None:
                made.graph(depth)  # the proof, while all layers could still be traced
            traced.append(made)
    return traced


def trace(signature: Signature, standins: StandIns) -> bytes:
    """Traces and lowers one signature.

    Args:
        signature: Module with stand-ins for parameters, and example inputs.
        standins: The module's.

    Returns:
        A .tflite whose matrices are external buffers named after parameters.

    Raises:
        ConversionError: A weight cannot be found again in the graph; names it.
    """
    with _quiet(), _no_collection():
        program = _export(signature)
        uses = _uses(program, signature.module)
        module, context = _lower(program, signature)
        scalars = _scalars(module)
        with context:
            _run_passes(module)
            _externalize(module, standins, scalars, uses, signature.name)
        content = bytes(converter.export_flatbuffer_to_bytes(_operation(module)))
    check(floatgraph.read(content, standins), uses, signature.name)
    return content


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


def _export(signature: Signature) -> torch.export.ExportedProgram:
    wrapped = _litert(signature)
    # The lowering decomposes anyway, so doing it here as well would only cost time.
    program = core.export_torch_signature(wrapped, run_decompositions=False)
    program = fx_infra.graph_utils.reset_from_node_meta(program)
    return core._run_convert_passes(program)


def _litert(signature: Signature) -> litert_signature.Signature:
    return litert_signature.Signature(
        signature.name, signature.module, None, dict(signature.inputs)
    )


def _uses(program: torch.export.ExportedProgram, module: torch.nn.Module) -> Counter[str]:
    """Counts the operators that read each parameter and that the outputs depend on."""
    canonical = _canonical_names(module)
    targets = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind == torch.export.graph_signature.InputKind.PARAMETER
    }
    needed: set[torch.fx.Node] = set()
    pending = [n for n in program.graph.nodes if n.op == "output"]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return Counter(
        canonical[targets[source.name]]
        for node in needed
        for source in node.all_input_nodes
        if source.op == "placeholder" and source.name in targets
    )


def _canonical_names(exported: torch.nn.Module) -> dict[str, str]:
    """Maps parameter names of the exported wrapper to those of the decoder inside of it."""
    inner = next(m for m in exported.modules() if hasattr(m, "transformer_blocks"))
    names = names_of(inner)
    return {n: names[id(p)] for n, p in exported.named_parameters(remove_duplicate=False)}


def _lower(program: torch.export.ExportedProgram, signature: Signature) -> tuple[Any, ir.Context]:
    context = backend.export_utils.create_ir_context()
    with _uniform_constants():
        lowered = backend.export.exported_program_to_mlir(
            program,
            ir_context=context,
            lowering_context_plugins=[inline_consts.InlineConstsContext()],
        )
    converter.set_signature(
        lowered.module.operation,
        signature_name=signature.name,
        input_names=_litert(signature).flat_arg_names,
        output_names=litert_converter._get_output_names(program, lowered),
    )
    return converter.merge_modules([lowered.module]), context


@contextmanager
def _uniform_constants() -> Iterator[None]:
    """Lowers a matrix with strides of zero to a uniform constant without writing it out."""
    stock = lowerings.lookup(_PLACEHOLDER)

    def lower(lctx: Any, x: torch.Tensor) -> Any:
        if x.dim() < 2 or x.numel() < 2 or any(x.stride()):
            return stock(lctx, x)
        kind = ir.RankedTensorType.get(x.shape, ir.F32Type.get())
        value = x[(0,) * x.dim()].item()
        attribute = lowerings.utils.splat_attr(value, kind.element_type, kind.shape)
        return inline_consts._build_const(attribute, kind)

    lowerings.lower(_PLACEHOLDER)(lower)
    try:
        yield
    finally:
        lowerings.lower(_PLACEHOLDER)(stock)


def _run_passes(module: Any) -> None:
    # The settings of litert_torch._convert.litert_converter.
    config = converter.ConvertToTFLConfig()
    config.model_origin_framework = "PYTORCH"
    config.unsafe_fuse_dynamic_shaped_broadcast = True
    config.canonicalizing_inf_as_min_max_float = False
    config.enable_x64 = False
    converter.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)


def _externalize(
    module: Any,
    standins: StandIns,
    scalars: frozenset[float],
    uses: Mapping[str, int],
    signature: str,
) -> None:
    """Replaces each matrix's constant by a reference to the parameter, before it is written out."""
    for op in list(_walk(_operation(module))):
        if op.name not in _CONSTANTS:
            continue
        attribute, kind = op.attributes["value"], op.results[0].type
        if not isinstance(attribute, ir.DenseFPElementsAttr) or not attribute.is_splat:
            continue
        shape, value = tuple(kind.shape), float(attribute.get_splat_value().value)
        constant = _matrix(shape, value, standins, scalars, uses)
        if constant is None:
            if np.prod(shape, dtype=np.int64) >= _SIZABLE:
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
    scalars: frozenset[float],
    uses: Mapping[str, int],
) -> Constant | None:
    """Recognizes a uniform constant: a stand-in, or one that was folded with a known number."""
    standin = standins.matrix(value)
    if standin and standin.shape == shape:
        return Constant(standin.parameter)
    if len(shape) < 2 or np.prod(shape, dtype=np.int64) < _SIZABLE:
        return None
    folded = [
        Constant(name, operation=operation, operand=scalar)
        for name in uses
        if (candidate := standins.by_name[name]).shape == shape
        for scalar in sorted(scalars)
        for operation in ("*", "/")
        if _fold(float(candidate.values()[0]), operation, scalar) == value
    ]
    return folded[0] if len(folded) == 1 else None


def _fold(value: float, operation: str, scalar: float) -> float:
    a, b = np.float32(value), np.float32(scalar)
    with np.errstate(all="ignore"):
        return float(a * b if operation == "*" else a / b)


def _scalars(module: Any) -> frozenset[float]:
    """Lists the numbers that a lowered program multiplies or divides by."""
    found = set()
    for op in _walk(_operation(module)):
        if op.name in (*_CONSTANTS, "stablehlo.constant"):
            attribute = op.attributes["value"]
            if isinstance(attribute, ir.DenseFPElementsAttr) and attribute.is_splat:
                found.add(float(attribute.get_splat_value().value))
    return frozenset(v for v in found if np.isfinite(v) and v not in (0.0, 1.0, -1.0))


def _operation(module: Any) -> Any:
    return module.operation if hasattr(module, "operation") else module


def _walk(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for op in list(block.operations):
                yield op.operation
                yield from _walk(op.operation)


def _refused(problem: str) -> ConversionError:
    return ConversionError(problem, remedy="use --engine litert, and report it with the model")


@contextmanager
def _quiet() -> Iterator[None]:
    # litert-torch prints its progress to stdout, which belongs to data.
    name = "LITERT_TORCH_SHOW_PROGRESS"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _no_collection() -> Iterator[None]:
    # A trace makes a million objects that live until its end; looking for garbage among them
    # again and again costs a tenth of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
