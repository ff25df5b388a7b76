"""Compares two .tflite files by what they compute, whatever their tensors are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

#: What names of tensors and places of subgraphs are, and no computation depends on.
_PLACES = {"decompositionSubgraphIndex"}


def differences(left: Path, right: Path, at_most: int = 5) -> list[str]:
    """Returns where two files differ: operators, shapes, constants, scales, zero points."""
    a, b = _canonical(left), _canonical(right)
    if a.keys() != b.keys():
        return [f"signatures {sorted(a)} and {sorted(b)}"]
    found = []
    for name in a:
        if len(a[name]) != len(b[name]):
            found.append(f"{name}: {len(a[name])} and {len(b[name])} rows")
        found += [
            f"{name} {i}:\n    {_short(x)}\n    {_short(y)}"
            for i, (x, y) in enumerate(zip(a[name], b[name], strict=False))
            if x != y
        ]
    return found[:at_most]


def _short(row: Any) -> str:
    return repr(row)[:1500]


def _canonical(path: Path) -> dict[str, list[Any]]:
    content = np.memmap(path, dtype=np.uint8, mode="r")
    model = schema.ModelT.InitFromPackedBuf(memoryview(content), 0)
    return {
        d.signatureKey.decode(): _Signature(model, content, d).rows() for d in model.signatureDefs
    }


class _Signature:
    def __init__(self, model: Any, content: Any, definition: Any) -> None:
        self._model = model
        self._content = content
        self._definition = definition

    def rows(self) -> list[Any]:
        """One row per operator, and the outputs."""
        subgraph = self._model.subgraphs[self._definition.subgraphIndex]
        inputs = {e.tensorIndex: ("input", e.name) for e in self._definition.inputs}
        refs = self._run(subgraph, inputs)
        rows = refs.pop("rows")
        order = [inputs[int(i)] for i in subgraph.inputs]
        outputs = sorted((e.name, refs[e.tensorIndex]) for e in self._definition.outputs)
        return [*rows, order, outputs, [refs[int(i)] for i in subgraph.outputs]]

    def _run(self, subgraph: Any, known: dict[Any, Any]) -> dict[Any, Any]:
        refs: dict[Any, Any] = dict(known)
        rows = []
        for number, op in enumerate(subgraph.operators):
            code = self._model.operatorCodes[op.opcodeIndex]
            inner = None
            if isinstance(op.builtinOptions2, schema.StableHLOCompositeOptionsT):
                other = self._model.subgraphs[op.builtinOptions2.decompositionSubgraphIndex]
                numbered = {int(i): ("argument", k) for k, i in enumerate(other.inputs)}
                inner = self._run(other, numbered)["rows"]
            row = (
                code.builtinCode,
                code.version,
                _fields(op.builtinOptions),
                _fields(op.builtinOptions2),
                tuple(self._ref(subgraph, refs, int(i)) for i in op.inputs),
                tuple(_type(subgraph.tensors[i]) for i in op.outputs),
                inner,
            )
            rows.append(row)
            for k, i in enumerate(op.outputs):
                refs[int(i)] = ("operator", number, k)
        refs["rows"] = rows
        return refs

    def _ref(self, subgraph: Any, refs: dict[Any, Any], index: int) -> Any:
        if index < 0:
            return None
        if index in refs:
            return refs[index]
        tensor = subgraph.tensors[index]
        quantization = tensor.quantization
        scales: Any = None
        if quantization is not None:
            details = quantization.details
            scales = (
                quantization.quantizedDimension if quantization.scale is not None else 0,
                *(_hash(x) for x in (quantization.scale, quantization.zeroPoint)),
                None
                if details is None
                else (
                    details.blockSize,
                    *(
                        self._constant(subgraph.tensors[i]) if i >= 0 else None
                        for i in (details.scales, details.zeroPoints)
                    ),
                ),
            )
        return (*self._constant(tensor), scales)

    def _constant(self, tensor: Any) -> Any:
        buffer = self._model.buffers[tensor.buffer]
        data = buffer.data
        if data is None and buffer.offset:
            data = self._content[buffer.offset : buffer.offset + buffer.size]
        return (*_type(tensor), _hash(data))


def _type(tensor: Any) -> Any:
    return tensor.type, None if tensor.shape is None else tuple(int(n) for n in tensor.shape)


def _hash(values: Any) -> Any:
    if values is None or not len(values):
        return None
    array = np.ascontiguousarray(values)
    return array.dtype.str, array.size, hash(array.tobytes()), array[:4].tolist()


def _fields(options: Any) -> Any:
    if options is None or isinstance(options, int | float | str | bytes | bool):
        return options
    if hasattr(options, "__dict__"):
        return tuple((k, _fields(v)) for k, v in sorted(vars(options).items()) if k not in _PLACES)
    return bytes(np.ascontiguousarray(options))
