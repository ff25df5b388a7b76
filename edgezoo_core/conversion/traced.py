"""A traced signature as it is kept: read without the libraries that traced it."""

from __future__ import annotations

from dataclasses import dataclass

from edgezoo_core.conversion import floatgraph
from edgezoo_core.conversion.floatgraph import FloatGraph
from edgezoo_core.conversion.stamping import deepen
from edgezoo_core.conversion.standins import StandIns


@dataclass(frozen=True, slots=True)
class TracedSignature:
    """A signature's graph as it is kept.

    Attributes:
        name: Name of the signature.
        content: A .tflite whose matrices are external buffers named after parameters.
        parameters: Name and shape of each parameter of the module that was traced.
        block_scope: A block's part of an operator's name if the graph is shallow (see `stamping`),
            None if all layers are in it.
    """

    name: str
    content: bytes
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    block_scope: str | None

    def graph(self, depth: int) -> FloatGraph:
        """Returns the graph with all layers."""
        graph = floatgraph.read(self.content, StandIns(self.parameters))
        return graph if self.block_scope is None else deepen(graph, self.block_scope, depth)
