"""What an inspection finds: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgezoo_core.decoder import EntryPoint
from edgezoo_core.inspection.places import Place

#: How an operator computes with a weight: in floating point, or in integers with activations that
#: are quantized at run time (dynamic) or by scales of the file (static).
Mode = Literal["float", "dynamic", "static"]


@dataclass(frozen=True, slots=True)
class Constant:
    """Bytes of the file that operators read; counted once however many share them.

    Attributes:
        name: Of the first tensor that has it.
        places: Where it belongs: two for a tied embedding, none where no name tells.
        is_weight: Whether it is the matrix of an operator that multiplies or looks up.
        dtype: How it is stored.
        shape: Its dimensions.
        size_bytes: Without scales.
        granularity: `per channel`, `per tensor`, `block <n>`; None if it is not quantized.
        scale_bytes: Of its scales and zero points, wherever in the file they stand.
        mode: How its operators compute with it.
        format: As recipes spell it: the manifest's account if there is one, else told from the
            file.
        operators: Kinds of operators that read it.
    """

    name: str
    places: tuple[Place, ...]
    is_weight: bool
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    granularity: str | None
    scale_bytes: int
    mode: Mode
    format: str
    operators: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {**asdict(self), "places": [str(p) for p in self.places]}


@dataclass(frozen=True, slots=True)
class Subgraph:
    """A graph of the file.

    Attributes:
        signature: The signature that it serves; None for the inside of a composite operator.
        operators: How many there are of each kind.
        tensors: How many it has, constants and activations.
    """

    signature: str | None
    operators: Mapping[str, int]
    tensors: int


@dataclass(frozen=True, slots=True)
class Bytes:
    """Where the bytes of a .tflite are; they add up to its length.

    Attributes:
        weights: Matrices.
        constants: Everything else that operators read: norms, biases, tables, masks, shapes.
        scales: Scales and zero points.
        graph: Operators, tensors, names, metadata, and what aligns them.
        padding: Gaps between constants that stand behind the graph.
    """

    weights: int
    constants: int
    scales: int
    graph: int
    padding: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.constants + self.scales + self.graph + self.padding


@dataclass(frozen=True, slots=True)
class Account:
    """What is in a .tflite.

    Attributes:
        section: Index of its section, None outside of a bundle.
        model_type: What a bundle says that it is for.
        signatures: By name.
        subgraphs: In the order of the file.
        constants: Largest first.
        bytes: Where the bytes are.
    """

    section: int | None
    model_type: str | None
    signatures: Mapping[str, EntryPoint]
    subgraphs: tuple[Subgraph, ...]
    constants: tuple[Constant, ...]
    bytes: Bytes

    @property
    def weights(self) -> list[Constant]:
        """The matrices."""
        return [c for c in self.constants if c.is_weight]

    def operators(self) -> dict[str, int]:
        """Counts the operators of all subgraphs, most frequent first."""
        total: dict[str, int] = {}
        for graph in self.subgraphs:
            for name, count in graph.operators.items():
                total[name] = total.get(name, 0) + count
        return dict(sorted(total.items(), key=lambda pair: (-pair[1], pair[0])))

    def by_dtype(self) -> dict[str, tuple[int, int]]:
        """Returns number and bytes of the constants of each dtype."""
        return _sums((c.dtype, c.size_bytes) for c in self.constants)

    def by_layer(self) -> dict[int, tuple[int, int]]:
        """Returns number and bytes of the constants that belong to one layer, scales included."""
        found: list[tuple[int, int]] = []
        for constant in self.constants:
            layers = {p.layer for p in constant.places}
            if len(layers) == 1 and (layer := layers.pop()) is not None:
                found.append((layer, constant.size_bytes + constant.scale_bytes))
        return dict(sorted(_sums(found).items()))

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""

        def sums(table: Mapping[Any, tuple[int, int]]) -> dict[str, dict[str, int]]:
            return {str(k): {"tensors": n, "size_bytes": size} for k, (n, size) in table.items()}

        return {
            "section": self.section,
            "model_type": self.model_type,
            "signatures": {n: _signature(s) for n, s in self.signatures.items()},
            "operators": self.operators(),
            "subgraphs": [asdict(g) for g in self.subgraphs],
            "bytes": {**asdict(self.bytes), "total": self.bytes.total},
            "dtypes": sums(self.by_dtype()),
            "layers": sums(self.by_layer()),
            "constants": [c.to_json() for c in self.constants],
        }


@dataclass(frozen=True, slots=True)
class SectionAccount:
    """A part of a bundle."""

    kind: str
    model_type: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BundleAccount:
    """What is in a .litertlm beside its models.

    Attributes:
        sections: In the order of the header.
        header_bytes: What stands before the first section.
        padding_bytes: Gaps between sections.
        metadata: Whether there is an LlmMetadata section, which the fields below come from.
        start_token: Ids, or a text, before every prompt; None if there is none.
        stop_tokens: Ids or texts that end an answer.
        prompts: `jinja`, `affixes`, `jinja and affixes`, or `none`.
        max_num_tokens: Slots of the KV cache, 0 if it does not say.
    """

    sections: tuple[SectionAccount, ...]
    header_bytes: int
    padding_bytes: int
    metadata: bool
    start_token: tuple[int, ...] | str | None
    stop_tokens: tuple[tuple[int, ...] | str, ...]
    prompts: str
    max_num_tokens: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in a file.

    Attributes:
        path: The .tflite or .litertlm.
        size_bytes: Its length.
        recipe: Name of the recipe, if a manifest tells.
        models: The .tflite, or those of the bundle.
        bundle: The bundle around them.
        notes: What is not as it seems.
    """

    path: Path
    size_bytes: int
    recipe: str | None
    models: tuple[Account, ...]
    bundle: BundleAccount | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "recipe": self.recipe,
            "models": [m.to_json() for m in self.models],
            "bundle": asdict(self.bundle) if self.bundle else None,
            "notes": list(self.notes),
        }


def format_name(dtype: str, mode: Mode, granularity: str | None) -> str:
    """Spells a format as recipes do (see `recipe.FORMATS`)."""
    if dtype.startswith("float"):
        return {"float32": "none", "float16": "fp16"}.get(dtype, dtype)
    words = ["weight_only" if mode == "float" else mode, dtype]
    if granularity and granularity.startswith("block"):
        words.append(granularity.replace(" ", ""))
    return "_".join(words)


def _sums(pairs: Any) -> dict[Any, tuple[int, int]]:
    table: dict[Any, tuple[int, int]] = {}
    for key, size in pairs:
        count, total = table.get(key, (0, 0))
        table[key] = (count + 1, total + size)
    return table


def _signature(entry: EntryPoint) -> dict[str, Any]:
    return {
        way: {n: {"dtype": t.dtype, "shape": list(t.shape)} for n, t in tensors.items()}
        for way, tensors in (("inputs", entry.inputs), ("outputs", entry.outputs))
    }
