"""Reads a .tflite: its signatures, and where its weights are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

from edgezoo_core.errors import ArtifactError
from edgezoo_core.types import Operator, SignatureSpec, TensorSpec

#: TensorType -> name, as numpy spells it where numpy has it.
DTYPES: Mapping[int, str] = {
    code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)
}
_OPERATORS: Mapping[int, Operator] = {
    schema.BuiltinOperator.FULLY_CONNECTED: "FULLY_CONNECTED",
    schema.BuiltinOperator.EMBEDDING_LOOKUP: "EMBEDDING_LOOKUP",
}
#: Both operators take the weights as their second input.
_WEIGHT_INPUT = 1


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A constant of the file.

    Attributes:
        buffer: Index of its buffer; equal for all that share it.
        dtype: How it is stored.
        shape: (output channels, input channels).
        scales: Number of scales, 0 if it is not quantized.
        block_size: Input channels per scale, None if one scale serves a whole row.
        is_dequantized: Whether a DEQUANTIZE stands between it and its operator.
    """

    buffer: int
    dtype: str
    shape: tuple[int, ...]
    scales: int
    block_size: int | None
    is_dequantized: bool


@dataclass(frozen=True, slots=True)
class WeightUse:
    """An operator that reads a weight.

    Attributes:
        signature: The signature it is in.
        operator: What it is.
        scope: Its name, as ai-edge-quantizer's rules see it.
        weight: The constant, None where the operator multiplies two activations.
    """

    signature: str
    operator: Operator
    scope: str
    weight: StoredWeight | None


def read(path: Path) -> Any:
    """Returns the schema's ModelT; its buffers are views of the mapped file.

    Raises:
        ArtifactError: The file is no .tflite.
    """
    try:
        content: Any = np.memmap(path, dtype=np.uint8, mode="r")
        if bytes(content[4:8]) != b"TFL3":
            raise ValueError("the identifier TFL3 is missing")
        return tfl_flatbuffer_utils.read_model(memoryview(content))
    except (OSError, ValueError, TypeError, IndexError) as e:
        raise ArtifactError(
            f"{path} is no .tflite file: {e}", remedy="convert the model again"
        ) from e


def signatures(model: Any) -> tuple[SignatureSpec, ...]:
    """Returns the signatures with names, dtypes and shapes, in the order of the file."""
    return tuple(
        SignatureSpec(
            definition.signatureKey.decode(),
            *(
                tuple(
                    _spec(entry, model.subgraphs[definition.subgraphIndex])
                    for entry in sorted(entries or (), key=lambda e: e.name)
                )
                for entries in (definition.inputs, definition.outputs)
            ),
        )
        for definition in model.signatureDefs
    )


def weight_uses(model: Any) -> list[WeightUse]:
    """Lists every FULLY_CONNECTED and EMBEDDING_LOOKUP of every signature, in order."""
    uses = []
    for definition in model.signatureDefs:
        subgraph = model.subgraphs[definition.subgraphIndex]
        producers = {i: op for op in subgraph.operators for i in op.outputs}
        for op in subgraph.operators:
            operator = _OPERATORS.get(model.operatorCodes[op.opcodeIndex].builtinCode)
            if operator:
                index = op.inputs[_WEIGHT_INPUT]
                weight = _stored(model, subgraph, index, producers)
                scope = tfl_flatbuffer_utils.get_op_scope(op, subgraph.tensors)
                uses.append(WeightUse(definition.signatureKey.decode(), operator, scope, weight))
    return uses


def float_values(model: Any, weight: StoredWeight) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns a float32 weight as a view of the file, shape (output, input channels)."""
    return np.frombuffer(model.buffers[weight.buffer].data, np.float32).reshape(weight.shape)


def _stored(
    model: Any, subgraph: Any, index: int, producers: Mapping[int, Any]
) -> StoredWeight | None:
    is_dequantized = False
    producer = producers.get(index)
    if producer is not None:
        code = model.operatorCodes[producer.opcodeIndex].builtinCode
        if code != schema.BuiltinOperator.DEQUANTIZE:
            return None
        is_dequantized, index = True, producer.inputs[0]
    tensor = subgraph.tensors[index]
    if model.buffers[tensor.buffer].data is None:
        return None
    scales, block_size = scales_of(subgraph, tensor)
    shape = tuple(int(n) for n in tensor.shape)
    return StoredWeight(
        tensor.buffer, DTYPES[tensor.type], shape, scales, block_size, is_dequantized
    )


def scales_of(subgraph: Any, tensor: Any) -> tuple[int, int | None]:
    """Returns how many scales a tensor has, and its block size if it has one."""
    quantization = tensor.quantization
    if quantization is None:
        return 0, None
    details = quantization.details
    if isinstance(details, schema.BlockwiseQuantizationT):
        scales = subgraph.tensors[details.scales]
        return int(np.prod(scales.shape)), int(details.blockSize)
    return (0 if quantization.scale is None else len(quantization.scale)), None


def _spec(entry: Any, subgraph: Any) -> TensorSpec:
    tensor = subgraph.tensors[entry.tensorIndex]
    shape = () if tensor.shape is None else tuple(int(n) for n in tensor.shape)
    return TensorSpec(entry.name.decode(), DTYPES[tensor.type], shape)
