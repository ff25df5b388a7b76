"""litert-torch's own path: torch.export, lowering, TFL passes, a float32 file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from litert_torch._convert.interface import Converter

from edgezoo_core.conversion import graph, quantization
from edgezoo_core.types import Progress, QuantPlan, Signature, SignatureSpec, silent

if TYPE_CHECKING:
    import torch


def convert(
    module: torch.nn.Module,
    signatures: Sequence[Signature],
    plan: QuantPlan,
    output: Path,
    scratch: Path,
    progress: Progress = silent,
) -> tuple[SignatureSpec, ...]:
    """Converts a model; memory and disk grow with it.

    Args:
        module: The decoder, weights loaded.
        signatures: What to export of it.
        plan: The format of every weight.
        output: The .tflite to write.
        scratch: A file on the same disk for the float32 graph; the caller removes it.
        progress: Told of each stage.

    Returns:
        The signatures as they stand in the file.

    Raises:
        ConversionError: The graph is not what was asked for.
    """
    progress(f"tracing and lowering {', '.join(s.name for s in signatures)}")
    is_float = all(rule.format is None for rule in plan.rules)
    export(signatures, output if is_float else scratch)
    if is_float:
        progress("checking the graph")
        quantization.assign(graph.read(output), plan, module)
    else:
        progress(f"quantizing ({plan.name})")
        quantization.quantize(scratch, output, plan, module)
    return graph.signatures(graph.read(output))


def export(signatures: Sequence[Signature], output: Path) -> None:
    """Writes the signatures as one float32 .tflite; weights are shared between them.

    Args:
        signatures: Modules with example inputs, weights loaded.
        output: Where to write.
    """
    converter = Converter()
    for signature in signatures:
        converter.add_signature(
            signature.name, signature.module, sample_kwargs=dict(signature.inputs)
        )
    # Lightweight: large constants stay outside of the compiler's own copies.
    converter.convert(lightweight_conversion=True).export(str(output))
