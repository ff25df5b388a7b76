"""From an authored model to a quantized .tflite file.

`litert` traces and lowers with litert-torch, `quantization` lets ai-edge-quantizer apply the plan,
`graph` reads the files that pass between them. The stages above call `convert` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgezoo_core.conversion import graph, litert, quantization
from edgezoo_core.model import AuthoredModel, materialize
from edgezoo_core.types import Progress, QuantPlan, Signature, SignatureSpec, silent


def convert(
    authored: AuthoredModel,
    signatures: Sequence[Signature],
    plan: QuantPlan,
    output: Path,
    *,
    scratch: Path,
    progress: Progress = silent,
) -> tuple[SignatureSpec, ...]:
    """Converts a model with litert-torch's own path.

    Memory and disk grow with the model: the float32 graph passes through both whole.

    Args:
        authored: The module and where its weights are.
        signatures: What to export.
        plan: The format of every weight.
        output: The .tflite to write; its name is for the caller to make final.
        scratch: A file on the same disk for the float32 graph; the caller removes it.
        progress: Told of each stage.

    Returns:
        The signatures as they stand in the file.

    Raises:
        ConversionError: The graph is not what was asked for.
    """
    module = materialize(authored, progress)
    progress(f"tracing and lowering {', '.join(s.name for s in signatures)}")
    is_float = all(rule.format is None for rule in plan.rules)
    litert.export(signatures, output if is_float else scratch)
    if is_float:
        progress("checking the graph")
        quantization.assign(graph.read(output), plan, module)
    else:
        progress(f"quantizing ({plan.name})")
        quantization.quantize(scratch, output, plan, module)
    return graph.signatures(graph.read(output))


__all__ = ["convert"]
