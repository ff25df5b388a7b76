"""From traced signatures to a skeleton: the file without its weights, and its row program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgezoo_core.conversion import assembly, merging, thin
from edgezoo_core.conversion.assembly import Skeleton
from edgezoo_core.conversion.floatgraph import FloatGraph
from edgezoo_core.types import QuantPlan, RowSlice


def build(
    graphs: Sequence[FloatGraph],
    plan: QuantPlan,
    shapes: Mapping[str, tuple[int, ...]],
    sources: Mapping[str, Sequence[RowSlice]],
) -> Skeleton:
    """Builds a skeleton.

    Args:
        graphs: One per signature, with all layers; used up.
        plan: The format of every weight.
        shapes: Parameter -> shape.
        sources: Parameter -> the rows of the checkpoint that it is made of.

    Raises:
        ConversionError: The graph and the plan do not fit each other.
    """
    quantized = thin.quantize(merging.merge(graphs), plan, shapes)
    return assembly.assemble(quantized, sources)
