"""What a .tflite says about the decoder in it: signatures and KV cache. No weight is read."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core import slots as slot_counts
from edgezoo_core.artifact import Artifact
from edgezoo_core.errors import ArtifactError, listing
from edgezoo_core.soundness import refuse_unsound
from edgezoo_core.types import TensorSpec

_REMEDY = "name a .tflite that edgezoo or litert-torch converted"
_IDENTIFIER = b"TFL3"
#: What reading a table that is none may end in.
_DAMAGE = (TypeError, LookupError, AttributeError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """A signature.

    Attributes:
        name: Its key.
        graph: Index of its subgraph.
        inputs: Tensors by their names in the signature.
        outputs: The same.
    """

    name: str
    graph: int
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class KvCache:
    """How a decoder keeps what it has read.

    Attributes:
        layers: Number of key and of value caches.
        slots: S, as the shapes of its tensors say.
        capacity: How many of them are used, prompt and answer together: what LiteRT-LM makes of S.
        key_axis: Axis of `kv_cache_k_<i>` along which the slots are.
        value_axis: Axis of `kv_cache_v_<i>` along which the slots are.
    """

    layers: int
    slots: int
    capacity: int
    key_axis: int
    value_axis: int

    @property
    def is_default_layout(self) -> bool:
        """Whether k and v both are [1, S, Hkv, D]; else [1, Hkv, S, D] and [1, Hkv, D, S]."""
        return self.key_axis == 1


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder-only model in a file.

    Attributes:
        signatures: `decode` and each `prefill…`, by name.
        cache: Its KV cache.
        vocabulary: Token ids V that decode's logits tell apart.
    """

    signatures: Mapping[str, EntryPoint]
    cache: KvCache
    vocabulary: int


def read(converted: Artifact) -> Decoder:
    """Reads what an artifact says about itself.

    Raises:
        ArtifactError: The file is no .tflite, or not one of a decoder with a KV cache.
    """
    path = converted.path
    with mapped(path) as model:
        found = signatures(model)
    if "decode" not in found or not any(name.startswith("prefill") for name in found):
        raise ArtifactError(
            f"{path} has signatures {sorted(found)}, expected prefill_<n> and decode",
            remedy=_REMEDY,
        )
    decode = found["decode"]
    layers = sum(name.startswith("kv_cache_k_") for name in decode.inputs)
    expected = {f"kv_cache_{kind}_{i}" for kind in "kv" for i in range(layers)}
    expected |= {"tokens", "input_pos", "kv_cache_k_0", "kv_cache_v_0"}
    missing = expected - decode.inputs.keys()
    if missing or "logits" not in decode.outputs:
        raise ArtifactError(
            f"decode of {path} lacks {listing(sorted(missing)) or 'the output logits'}",
            remedy=_REMEDY,
        )
    for name, signature in found.items():
        if name == "decode" or name.startswith("prefill"):
            _refuse_flat(path, signature)
    layout = (converted.manifest or {}).get("options", {}).get("kv_layout")
    cache = kv_cache(decode, layout)
    if cache is None:
        shapes = [decode.inputs[n].shape for n in ("kv_cache_k_0", "kv_cache_v_0")]
        raise ArtifactError(
            f"the KV cache of {path} has shapes {shapes[0]} and {shapes[1]}, which fit neither"
            " layout",
            remedy=_REMEDY,
        )
    return Decoder(found, cache, decode.outputs["logits"].shape[-1])


def _refuse_flat(path: Path, signature: EntryPoint) -> None:
    """Checks that a signature takes positions, and that what is measured has dimensions."""
    measured = {"input_pos": 1, "mask": 4, "logits": 1}
    tensors = {**signature.outputs, **signature.inputs}
    wrong = [n for n, rank in measured.items() if n in tensors and len(tensors[n].shape) < rank]
    if "input_pos" not in signature.inputs:
        wrong.append("input_pos")
    if wrong:
        raise ArtifactError(
            f"{signature.name} of {path} lacks {listing(wrong)}, or has it without dimensions",
            remedy=_REMEDY,
        )


def kv_cache(decode: EntryPoint, layout: str | None = None) -> KvCache | None:
    """Reads the KV cache out of decode's inputs; None if its shapes fit neither layout.

    Args:
        decode: A signature with `kv_cache_k_0` and `kv_cache_v_0`.
        layout: What is known of it, `default` or `transposed`; told from the shapes otherwise.
    """
    key, value = (decode.inputs[n].shape for n in ("kv_cache_k_0", "kv_cache_v_0"))
    if len(key) != 4 or len(value) != 4:
        return None
    is_default = key == value
    if layout is not None:
        is_default = layout == "default"
    elif is_default and "mask" in decode.inputs:
        # Where S equals D both layouts have equal shapes, and a mask tells S.
        is_default = decode.inputs["mask"].shape[-1:] == key[1:2]
    key_axis, value_axis = (1, 1) if is_default else (2, 3)
    if key[key_axis] != value[value_axis]:
        return None
    layers = sum(name.startswith("kv_cache_k_") for name in decode.inputs)
    slots = key[key_axis]
    capacity = slot_counts.used(slots) if "mask" in decode.inputs else slots
    return KvCache(layers, slots, capacity, key_axis, value_axis)


@contextmanager
def mapped(path: Path, offset: int = 0) -> Iterator[Any]:
    """Gives the flatbuffer of a .tflite, mapped: only what is asked for is read.

    Args:
        path: The .tflite, or a file that holds one.
        offset: Where in the file it begins.

    Raises:
        ArtifactError: There is none, or it is damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as head:
            if head[offset + 4 : offset + 8] != _IDENTIFIER:
                raise ArtifactError(f"{path} is no .tflite file", remedy=_REMEDY)
            model = schema.Model.GetRootAs(head, offset)
            try:
                refuse_unsound(head, offset)
            except ArtifactError as e:
                raise ArtifactError(f"{path}: {e.message}", remedy=e.remedy) from e
            yield model
    except (OSError, ValueError, *_DAMAGE) as e:
        raise ArtifactError(f"{path} is no sound .tflite file: {e}", remedy=_REMEDY) from e


def signatures(model: Any) -> dict[str, EntryPoint]:
    """Returns the signatures of a flatbuffer by name."""
    entries = [model.SignatureDefs(i) for i in range(model.SignatureDefsLength())]
    return {s.name: s for s in (_signature(model, entry) for entry in entries)}


def _signature(model: Any, entry: Any) -> EntryPoint:
    from ai_edge_litert import schema_py_generated as schema

    graph = model.Subgraphs(entry.SubgraphIndex())
    codes = {c: n.lower() for n, c in vars(schema.TensorType).items() if isinstance(c, int)}

    def spec(pair: Any) -> tuple[str, TensorSpec]:
        tensor = graph.Tensors(pair.TensorIndex())
        shape = tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))
        name = pair.Name().decode()
        return name, TensorSpec(name, codes.get(tensor.Type(), "unknown"), shape)

    return EntryPoint(
        entry.SignatureKey().decode(),
        entry.SubgraphIndex(),
        dict(spec(entry.Inputs(i)) for i in range(entry.InputsLength())),
        dict(spec(entry.Outputs(i)) for i in range(entry.OutputsLength())),
    )
