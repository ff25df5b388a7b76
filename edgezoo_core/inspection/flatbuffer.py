"""Reads the account of a .tflite out of its flatbuffer; the values of no constant are touched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgezoo_core import constants, decoder
from edgezoo_core.constants import Span
from edgezoo_core.decoder import EntryPoint
from edgezoo_core.errors import ArtifactError
from edgezoo_core.inspection import places
from edgezoo_core.inspection.places import Place
from edgezoo_core.inspection.values import (
    Account,
    Bytes,
    Constant,
    Mode,
    Subgraph,
    format_name,
)

#: Which operand of an operator is a weight, if it is a constant matrix.
_WEIGHT_OPERANDS = {
    "FULLY_CONNECTED": 1,
    "EMBEDDING_LOOKUP": 1,
    "BATCH_MATMUL": 1,
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "GATHER": 0,
}
_BIAS_OPERAND = 2
_QUANTIZATION = (
    constants.QUANTIZATION_MIN,
    constants.QUANTIZATION_MAX,
    constants.QUANTIZATION_SCALE,
    constants.QUANTIZATION_ZERO_POINT,
)
_STATIC = ("int8", "uint8", "int16")


@dataclass(frozen=True, slots=True)
class _Use:
    """An operator that reads a constant."""

    operator: str
    operand: int
    scope: str
    mode: Mode


@dataclass(slots=True)
class _Held:
    """A buffer with content, and what is known of it."""

    span: Span
    tensor: Any = None
    graph: Any = None
    uses: list[_Use] = field(default_factory=list)
    scales: set[Span] = field(default_factory=set)
    scale_buffers: set[int] = field(default_factory=set)


class Reader:
    """Reads one flatbuffer.

    Args:
        model: As `decoder.mapped` gives it.
        size_bytes: Length of the file, or of the section.
        rules: Place -> name of the format, as a manifest tells.
    """

    def __init__(self, model: Any, size_bytes: int, rules: Mapping[str, str]) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._model = model
        self._size = size_bytes
        self._rules = rules
        self._dtypes: dict[int, str] = {c: n.lower() for n, c in vars(schema.TensorType).items()}
        self._graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
        self._signatures = decoder.signatures(model)
        self._operators = self._operator_names()
        self._outer: set[Span] = set()
        self._scales: set[Span] = set()
        self._held = dict(self._buffers())

    def account(self, section: int | None = None, model_type: str | None = None) -> Account:
        """Reads it.

        Raises:
            ArtifactError: The file says of its own bytes what cannot be.
        """
        for graph in self._graphs:
            self._read_tensors(graph)
            self._read_uses(graph)
        scale_buffers = {b for held in self._held.values() for b in held.scale_buffers}
        found: dict[Span, Constant] = {}
        for index, held in self._held.items():
            if held.tensor is not None and index not in scale_buffers:
                found.setdefault(held.span, self._constant(held))
        ordered = sorted(found.values(), key=lambda c: (-c.size_bytes, c.name))
        names = {s.graph: s.name for s in self._signatures.values()}
        return Account(
            section,
            model_type,
            self._signatures,
            tuple(self._subgraph(i, names.get(i)) for i in range(len(self._graphs))),
            tuple(ordered),
            self._account_bytes(ordered, scale_buffers),
        )

    def _operator_names(self) -> list[str]:
        builtin = {c: n for n, c in vars(self._schema.BuiltinOperator).items()}
        names = []
        for i in range(self._model.OperatorCodesLength()):
            code = self._model.OperatorCodes(i)
            # Older files have the first field alone.
            number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
            custom = code.CustomCode()
            name = builtin.get(number, f"operator {number}")
            names.append(f"CUSTOM {_text(custom)}" if custom else name)
        return names

    def _buffers(self) -> Iterator[tuple[int, _Held]]:
        for index in range(self._model.BuffersLength()):
            buffer = self._model.Buffers(index)
            span = constants.content(buffer)
            if span is None:
                continue
            if constants.is_outer(buffer):
                if sum(span) > self._size:
                    raise ArtifactError(
                        f"buffer {index} ends at byte {sum(span)} of {self._size}",
                        remedy="the file is cut off: obtain it again",
                    )
                self._outer.add(span)
            yield index, _Held(span)

    def _read_tensors(self, graph: Any) -> None:
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            scales = set(_scale_spans(tensor))
            self._scales |= scales
            held = self._held.get(tensor.Buffer())
            if held is None:
                continue
            if held.tensor is None:
                held.tensor, held.graph = tensor, graph
            held.scales |= scales
            blocks = constants.blocks(tensor)
            if blocks:
                held.scale_buffers.add(graph.Tensors(blocks.Scales()).Buffer())

    def _read_uses(self, graph: Any) -> None:
        dequantized: dict[int, int] = {}
        for number in range(graph.OperatorsLength()):
            op = graph.Operators(number)
            name = self._operators[op.OpcodeIndex()]
            if not op.OutputsLength():
                continue
            result = graph.Tensors(op.Outputs(0))
            scope = _text(result.Name())
            is_static = self._dtype(result) in _STATIC
            for operand in range(op.InputsLength()):
                index = op.Inputs(operand)
                stored = dequantized.get(index, index)
                held = self._held.get(graph.Tensors(stored).Buffer()) if stored >= 0 else None
                if held is None:
                    continue
                if name == "DEQUANTIZE":
                    dequantized[op.Outputs(0)] = stored
                    continue
                is_float = stored != index or self._dtype(held.tensor).startswith("float")
                mode: Mode = "float" if is_float else "static" if is_static else "dynamic"
                held.uses.append(_Use(name, operand, scope, mode))

    def _subgraph(self, index: int, signature: str | None) -> Subgraph:
        graph = self._graphs[index]
        counts: dict[str, int] = {}
        for number in range(graph.OperatorsLength()):
            op = graph.Operators(number)
            name = self._operators[op.OpcodeIndex()]
            if name == "STABLEHLO_COMPOSITE":
                options = constants.composite(op)
                name = f"{name} {_text(options.Name()) if options else ''}"
            counts[name] = counts.get(name, 0) + 1
        return Subgraph(signature, counts, graph.TensorsLength())

    def _constant(self, held: _Held) -> Constant:
        tensor = held.tensor
        shape = tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))
        weight_uses = [u for u in held.uses if _is_weight(u, shape)]
        dtype = self._dtype(tensor)
        blocks = constants.blocks(tensor)
        granularity = _granularity(tensor, blocks.BlockSize() if blocks else None)
        block_bytes = sum(self._held[b].span[1] for b in held.scale_buffers if b in self._held)
        found = {p for u in held.uses if (p := self._place(u, shape, dtype))}
        telling = tuple(sorted((p for p in found if p.part), key=str))
        mode: Mode = weight_uses[0].mode if weight_uses else "float"
        told = format_name(dtype, mode, granularity) if weight_uses else dtype
        ruled = {self._rules[str(p)] for p in telling if str(p) in self._rules}
        return Constant(
            name=_text(tensor.Name()),
            places=telling,
            is_weight=bool(weight_uses),
            dtype=dtype,
            shape=shape,
            size_bytes=held.span[1],
            granularity=granularity,
            scale_bytes=sum(size for _, size in held.scales) + block_bytes,
            mode=mode,
            format=" and ".join(sorted(ruled)) if ruled and weight_uses else told,
            operators=tuple(sorted({u.operator for u in held.uses})),
        )

    def _place(self, use: _Use, shape: tuple[int, ...], dtype: str) -> Place | None:
        if _is_weight(use, shape):
            place = places.of_weight(use.scope, use.operator)
            if place == Place(None, None) and shape[0] == _vocabulary(self._signatures):
                return Place("lm_head", None)
            return place
        if use.operator == "FULLY_CONNECTED" and use.operand == _BIAS_OPERAND:
            place = places.of_weight(use.scope, use.operator)
            return Place(f"{place.part}.bias", place.layer) if place.part else place
        is_vector = dtype.startswith("float") and 1 < math.prod(shape) == (shape or (0,))[-1]
        return places.of_vector(use.scope) if is_vector else None

    def _account_bytes(self, found: list[Constant], scale_buffers: set[int]) -> Bytes:
        weights = sum(c.size_bytes for c in found if c.is_weight)
        others = sum(c.size_bytes for c in found if not c.is_weight)
        blocks = {self._held[b].span for b in scale_buffers if b in self._held}
        scales = sum(size for _, size in self._scales | blocks)
        # The flatbuffer goes to where the first constant stands that is behind it.
        end = min((start for start, _ in self._outer), default=self._size)
        padding = self._size - end - sum(size for _, size in self._outer)
        # What no tensor has, as metadata, and what is no vector of numbers, is the graph's.
        graph = self._size - padding - weights - others - scales
        if padding < 0 or graph < 0:
            raise ArtifactError(
                "its constants overlap each other", remedy="the file is damaged: obtain it again"
            )
        return Bytes(weights, others, scales, graph, padding)

    def _dtype(self, tensor: Any) -> str:
        return self._dtypes.get(tensor.Type(), f"type {tensor.Type()}")


def _scale_spans(tensor: Any) -> Iterator[Span]:
    quantization = tensor.Quantization()
    if quantization is not None:
        for slot in _QUANTIZATION:
            span = constants.vector(quantization, *slot)
            if span:
                yield span


def _is_weight(use: _Use, shape: tuple[int, ...]) -> bool:
    if len(shape) < 2 or _WEIGHT_OPERANDS.get(use.operator) != use.operand:
        return False
    # Tables of positions and masks are gathered from, too.
    return use.operator != "GATHER" or "Embedding" in use.scope


def _granularity(tensor: Any, block: int | None) -> str | None:
    if block:
        return f"block {block}"
    quantization = tensor.Quantization()
    scales = quantization.ScaleLength() if quantization else 0
    return "per channel" if scales > 1 else "per tensor" if scales else None


def _vocabulary(signatures: Mapping[str, EntryPoint]) -> int | None:
    """Returns how many tokens `decode` tells apart."""
    logits = signatures["decode"].outputs.get("logits") if "decode" in signatures else None
    return logits.shape[-1] if logits and logits.shape else None


def _text(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", "replace")
