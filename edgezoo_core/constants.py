"""Where the constants of a .tflite stand in its bytes. No value is read."""

from __future__ import annotations

from typing import Any

#: Slots of schema.fbs's tables, and the width of their elements.
BUFFER_DATA = (4, 1)
QUANTIZATION_MIN, QUANTIZATION_MAX, QUANTIZATION_SCALE, QUANTIZATION_ZERO_POINT = (
    (4, 4),
    (6, 4),
    (8, 4),
    (10, 8),
)

#: Start and length in bytes.
Span = tuple[int, int]


def vector(table: Any, slot: int, width: int) -> Span | None:
    """Returns where a vector of a flatbuffer's table stands, None if it is empty."""
    offset = table._tab.Offset(slot)
    length = table._tab.VectorLen(offset) if offset else 0
    return (table._tab.Vector(offset), width * length) if length else None


def is_outer(buffer: Any) -> bool:
    """Says whether a buffer's content stands behind the flatbuffer."""
    # 1 is a placeholder of writers that fill it in later.
    return bool(buffer.Offset() > 1)


def content(buffer: Any) -> Span | None:
    """Returns where a buffer's content stands, None if it has none: its tensors are computed."""
    if is_outer(buffer):
        return buffer.Offset(), buffer.Size()
    return vector(buffer, *BUFFER_DATA)


def blocks(tensor: Any) -> Any | None:
    """Returns the table BlockwiseQuantization of a tensor that is quantized by blocks."""
    from ai_edge_litert import schema_py_generated as schema

    quantization = tensor.Quantization()
    kind = schema.QuantizationDetails.BlockwiseQuantization
    if quantization is None or quantization.DetailsType() != kind:
        return None
    details, table = schema.BlockwiseQuantization(), quantization.Details()
    details.Init(table.Bytes, table.Pos)
    return details


def operator_code(model: Any, op: Any) -> tuple[int, bytes | None]:
    """Returns an operator's number among the built-in ones, and its name if it is none of them."""
    code = model.OperatorCodes(op.OpcodeIndex())
    # Older files have the first field alone.
    return max(code.DeprecatedBuiltinCode(), code.BuiltinCode()), code.CustomCode()


def composite(op: Any) -> Any | None:
    """Returns the table StableHLOCompositeOptions of an operator that stands for a subgraph."""
    from ai_edge_litert import schema_py_generated as schema

    kind = schema.BuiltinOptions2.StableHLOCompositeOptions
    if op.BuiltinOptions2Type() != kind:
        return None
    options, table = schema.StableHLOCompositeOptions(), op.BuiltinOptions2()
    options.Init(table.Bytes, table.Pos)
    return options
