"""One signature becomes a graph without weights: torch.export, lowering, the TFL passes.

The steps are litert-torch's own. What differs: parameters are stand-ins (see `standins`), so a
graph of any model fits in a few megabytes, and when the passes are done each stand-in is found
again and named after its parameter. One that cannot be found again stops the conversion.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from litert_converter.mlir import ir, passmanager
from litert_converter.mlir._mlir_libs import converter_api_ext as converter
from litert_torch import backend, fx_infra
from litert_torch._convert import core, litert_converter
from litert_torch._convert import signature as litert_signature
from litert_torch.backend import inline_consts, lowerings
from torch.fx._lazy_graph_module import _use_lazy_graph_module

from edgezoo_core.conversion import floatgraph, recognition
from edgezoo_core.conversion.decomposition import PureProgram
from edgezoo_core.conversion.floatgraph import FloatGraph
from edgezoo_core.conversion.periodicity import NotPeriodic
from edgezoo_core.conversion.shallow import block_scope, is_uniform, truncate
from edgezoo_core.conversion.stamping import prove_periodic
from edgezoo_core.conversion.standins import StandIns, install
from edgezoo_core.conversion.traced import TracedSignature
from edgezoo_core.types import Progress, Signature, silent

logger = logging.getLogger(__name__)

_PLACEHOLDER = inline_consts.tensor_lowering_placeholder

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
            scope = block_scope(module)
            return _trace_all(truncate(module), signatures_of, wanted, scope, progress)
        except NotPeriodic as e:
            logger.info("all layers are traced: %s", e)
    return _trace_all(module, signatures_of, wanted, None, progress)


def _trace_all(
    module: Any,
    signatures_of: SignaturesOf,
    wanted: Callable[[int], bool],
    scope: str | None,
    progress: Progress,
) -> list[TracedSignature]:
    standins = install(module)
    parameters = tuple((s.parameter, s.shape) for s in standins.by_name.values())
    traced = []
    for index, signature in enumerate(signatures_of(module)):
        if wanted(index):
            progress(f"tracing {signature.name}")
            content, graph = trace(signature, standins)
            if scope is not None:
                prove_periodic(graph, scope)  # while all layers could still be traced
            traced.append(TracedSignature(signature.name, content, parameters, scope))
            # Or the garbage of one signature would stand beside the next.
            gc.collect()
    return traced


def trace(signature: Signature, standins: StandIns) -> tuple[bytes, FloatGraph]:
    """Traces and lowers one signature.

    Args:
        signature: Module with stand-ins for parameters, and example inputs.
        standins: The module's.

    Returns:
        A .tflite whose matrices are external buffers named after parameters, and the graph in it.

    Raises:
        ConversionError: A weight cannot be found again in the graph; names it.
    """
    # Lazily: nobody runs the Python code of the many graphs on the way.
    with _no_collection(), _use_lazy_graph_module(True):
        program = _export(signature)
        uses = recognition.uses(program, signature, standins)
        module, context = _lower(program, signature)
        numbers = recognition.numbers(module, standins)
        with context:
            _run_passes(module)
            recognition.externalize(module, standins, numbers, uses, signature.name)
        content = bytes(converter.export_flatbuffer_to_bytes(recognition.operation(module)))
    graph = floatgraph.read(content, standins)
    recognition.check(graph, uses, signature.name)
    return content, graph


def _export(signature: Signature) -> torch.export.ExportedProgram:
    wrapped = _litert(signature)
    # The lowering decomposes anyway, so doing it here as well would only cost time.
    program = core.export_torch_signature(wrapped, run_decompositions=False)
    program = fx_infra.graph_utils.reset_from_node_meta(program)
    passed: torch.export.ExportedProgram = core._run_convert_passes(program)
    return passed


def _litert(signature: Signature) -> litert_signature.Signature:
    return litert_signature.Signature(
        signature.name, signature.module, None, dict(signature.inputs)
    )


def _lower(program: torch.export.ExportedProgram, signature: Signature) -> tuple[Any, ir.Context]:
    context = backend.export_utils.create_ir_context()
    with _uniform_constants():
        lowered = backend.export.exported_program_to_mlir(
            PureProgram.of(program),
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
