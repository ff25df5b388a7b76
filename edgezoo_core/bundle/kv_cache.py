"""Reads a .tflite's KV cache out of its signatures; the weights are not read."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core.artifact import Artifact
from edgezoo_core.errors import ArtifactError, listing

Shapes = Mapping[str, tuple[int, ...]]

_CONVERT = "name a .tflite that edgezoo or litert-torch converted"
_IDENTIFIER = b"TFL3"


@dataclass(frozen=True, slots=True)
class KvCache:
    """What a runtime needs to know of a decoder's KV cache.

    Attributes:
        layers: Number of key and value caches.
        capacity: Slots, prompt and answer together.
        key_axis: Axis of `kv_cache_k_<i>` along which the slots are.
        value_axis: Axis of `kv_cache_v_<i>` along which the slots are.
        vocabulary: Token ids that decode's logits tell apart.
    """

    layers: int
    capacity: int
    key_axis: int
    value_axis: int
    vocabulary: int


def read(converted: Artifact) -> KvCache:
    """Reads the KV cache of an artifact.

    Raises:
        ArtifactError: The file is no .tflite, or not one of a decoder with a KV cache.
    """
    path = converted.path
    with _model(path) as model:
        inputs, outputs = _decode_shapes(path, model)
    layers = sum(name.startswith("kv_cache_k_") for name in inputs)
    expected = {f"kv_cache_{kind}_{i}" for kind in "kv" for i in range(layers)}
    expected |= {"tokens", "input_pos", "kv_cache_k_0", "kv_cache_v_0"}
    missing = expected - inputs.keys()
    if missing or "logits" not in outputs:
        raise ArtifactError(
            f"decode of {path} lacks {listing(sorted(missing)) or 'the output logits'}",
            remedy=_CONVERT,
        )
    key, value = inputs["kv_cache_k_0"], inputs["kv_cache_v_0"]
    key_axis, value_axis = (1, 1) if _is_default_layout(converted, inputs) else (2, 3)
    capacity = key[key_axis]
    if len(key) != 4 or len(value) != 4 or value[value_axis] != capacity:
        raise ArtifactError(
            f"the KV cache of {path} has shapes {key} and {value}, which fit neither layout",
            remedy=_CONVERT,
        )
    return KvCache(layers, capacity, key_axis, value_axis, outputs["logits"][-1])


def _is_default_layout(converted: Artifact, inputs: Shapes) -> bool:
    """Tells k, v both [1, S, Hkv, D] from k [1, Hkv, S, D] with v [1, Hkv, D, S]."""
    options = (converted.manifest or {}).get("options", {})
    if "kv_layout" in options:
        return bool(options["kv_layout"] == "default")
    key, value = inputs["kv_cache_k_0"], inputs["kv_cache_v_0"]
    if key != value:
        return False
    # Where S equals D both layouts have equal shapes, and a mask tells S.
    return "mask" not in inputs or inputs["mask"][-1] == key[1]


@contextmanager
def _model(path: Path) -> Iterator[Any]:
    """Gives the flatbuffer of a .tflite, mapped: only what is asked for is read."""
    from ai_edge_litert import schema_py_generated as schema

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as head:
            if head[4:8] != _IDENTIFIER:
                raise ArtifactError(f"{path} is no .tflite file", remedy=_CONVERT)
            yield schema.Model.GetRootAs(head)
    except (OSError, ValueError, TypeError, struct.error) as e:
        raise ArtifactError(f"{path} is no sound .tflite file: {e}", remedy=_CONVERT) from e


def _decode_shapes(path: Path, model: Any) -> tuple[Shapes, Shapes]:
    """Returns shapes of decode's inputs and outputs by name."""
    signatures = [model.SignatureDefs(i) for i in range(model.SignatureDefsLength())]
    by_name = {s.SignatureKey().decode(): s for s in signatures}
    if "decode" not in by_name or not any(name.startswith("prefill") for name in by_name):
        raise ArtifactError(
            f"{path} has signatures {sorted(by_name)}, expected prefill_<n> and decode",
            remedy=_CONVERT,
        )
    decode = by_name["decode"]
    graph = model.Subgraphs(decode.SubgraphIndex())

    def shapes(entries: Iterator[Any]) -> Shapes:
        tensors = {e.Name().decode(): graph.Tensors(e.TensorIndex()) for e in entries}
        return {
            name: tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))
            for name, tensor in tensors.items()
        }

    return (
        shapes(decode.Inputs(i) for i in range(decode.InputsLength())),
        shapes(decode.Outputs(i) for i in range(decode.OutputsLength())),
    )
