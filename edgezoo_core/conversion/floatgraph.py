"""The graph of one signature, in float32, with references where its weights belong."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgezoo_core.conversion.standins import StandIns, looks_derived
from edgezoo_core.errors import ConversionError
from edgezoo_core.types import Operator

#: Operators that take their weights as second input, the only ones that are quantized.
WEIGHT_OPERATORS: dict[int, Operator] = {
    schema.BuiltinOperator.FULLY_CONNECTED: "FULLY_CONNECTED",
    schema.BuiltinOperator.EMBEDDING_LOOKUP: "EMBEDDING_LOOKUP",
}
WEIGHT_INPUT = 1
_SPELLED = re.compile(r"(\S+)(?: ([*/]) (\S+))?")


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of a graph that holds elements of a parameter.

    Attributes:
        parameter: Name of the parameter.
        start: First of its elements, in row-major order; None if it is a whole matrix.
        stop: One past the last.
        shift: What is added to each element.
        operation: `*` or `/` if the compiler folded each element with `operand`, else empty.
        operand: That number, float32.
    """

    parameter: str
    start: int | None = None
    stop: int | None = None
    shift: float = 0.0
    operation: str = ""
    operand: float = 1.0

    @property
    def is_matrix(self) -> bool:
        """Whether it is a whole matrix, which streams; otherwise it is a vector."""
        return self.start is None

    def spelled(self) -> str:
        """Returns a matrix as `parse` reads it."""
        folded = f" {self.operation} {self.operand.hex()}" if self.operation else ""
        return f"{self.parameter}{folded}"

    @classmethod
    def parse(cls, text: str) -> Constant:
        """Reads what `spelled` wrote."""
        match = _SPELLED.fullmatch(text)
        if not match:
            raise ConversionError(
                f"the graph names a constant {text!r}",
                remedy="clear the cache: edgezoo cache clear",
            )
        if not match[2]:
            return cls(match[1])
        return cls(match[1], operation=match[2], operand=float.fromhex(match[3]))


@dataclass(slots=True)
class FloatGraph:
    """A flatbuffer model with one signature.

    Attributes:
        model: The schema's ModelT; subgraph 0 is the signature's, the others are decompositions of
            composite operators. Not frozen: it is the working copy of one conversion.
        constants: What the tensors of subgraph 0 hold that belong to parameters.
    """

    model: Any
    constants: dict[int, Constant]

    @property
    def main(self) -> Any:
        """The signature's subgraph."""
        return self.model.subgraphs[0]

    @property
    def signature(self) -> Any:
        """The schema's SignatureDefT."""
        return self.model.signatureDefs[0]

    def uses(self) -> Counter[str]:
        """Counts the operators that read each parameter."""
        return Counter(
            self.constants[index].parameter
            for op in self.main.operators
            for index in op.inputs
            if index in self.constants
        )


def read(content: bytes, standins: StandIns) -> FloatGraph:
    """Reads a traced graph and recognizes its constants.

    Args:
        content: A .tflite whose matrices are external buffers named after parameters.
        standins: What it was traced with.

    Raises:
        ConversionError: A weight is neither a parameter nor an activation, or a constant looks
            computed from a parameter in a way that cannot be followed.
    """
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    groups = {b.id: model.externalBufferGroups[b.group].name for b in model.externalBuffers or ()}
    constants: dict[int, Constant] = {}
    for number, subgraph in enumerate(model.subgraphs):
        for index, tensor in enumerate(subgraph.tensors):
            if tensor.externalBuffer:
                found = Constant.parse(groups[tensor.externalBuffer].decode())
            else:
                vector = _vector(model, tensor, standins)
                if vector is None:
                    continue
                found = vector
            if number:
                raise _untraceable(f"{found.parameter} stands inside of a composite operator")
            constants[index] = found
    graph = FloatGraph(model, constants)
    _check_weights(graph)
    return graph


def values(model: Any, tensor: Any) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """Returns a float32 constant's values, None for any other tensor."""
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type != schema.TensorType.FLOAT32 or not len(data):
        return None
    return np.frombuffer(bytes(data), np.float32)


def _vector(model: Any, tensor: Any, standins: StandIns) -> Constant | None:
    held = values(model, tensor)
    if held is None:
        return None
    found = standins.vector(held)
    if found:
        return Constant(found.parameter, found.start, found.stop, found.shift)
    if looks_derived(held):
        raise _untraceable(
            f"a constant {list(tensor.shape)} ({tensor.name.decode()[-80:]}) was computed from a"
            " parameter at compile time"
        )
    return None


def _check_weights(graph: FloatGraph) -> None:
    """Every constant that an operator takes as weights must be a parameter's matrix."""
    produced = {i for op in graph.main.operators for i in op.outputs} | set(graph.main.inputs)
    for op in graph.main.operators:
        operator = WEIGHT_OPERATORS.get(graph.model.operatorCodes[op.opcodeIndex].builtinCode)
        if operator is None:
            continue
        index = op.inputs[WEIGHT_INPUT]
        held = graph.constants.get(index)
        if index not in produced and not (held and held.is_matrix):
            tensor = graph.main.tensors[index]
            raise _untraceable(
                f"the weight {list(tensor.shape)} of a {operator}"
                f" ({tensor.name.decode()[-80:]}) is no parameter of the model"
            )


def _untraceable(problem: str) -> ConversionError:
    return ConversionError(problem, remedy="use --engine litert, and report it with the model")
