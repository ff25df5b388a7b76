"""How each field of a config.json is varied, one at a time, so that it shows who ignores it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgezoo_core.config_fields import CHANGES_MATHEMATICS, INERT
from edgezoo_core.testkit.samples import ORIGINAL_CONTEXT, SIZES, WINDOW, Reference

#: How fields with an activation end, and activations to try, as transformers spells them.
_ACTIVATION_FIELDS = ("_act", "activation", "activation_function")
_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "quick_gelu")
#: Values to try where a field is null or absent; whoever ignores one shows it.
_VALUES: Mapping[str, tuple[Any, ...]] = {
    "attention_multiplier": (0.05,),
    "attn_logit_softcapping": (2.0,),
    "clip_qkv": (0.5,),
    "embedding_multiplier": (3.0,),
    "final_logit_softcapping": (2.0,),
    "logit_scale": (0.5,),
    "logits_scaling": (2.0,),
    "partial_rotary_factor": (0.5,),
    "query_pre_attn_scalar": (16,),
    "residual_multiplier": (0.5,),
    "sliding_window": (WINDOW,),
}
#: Kinds of scaled rope to try.
#: Source: transformers.modeling_rope_utils
_ROPES: tuple[Mapping[str, Any], ...] = (
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    },
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    },
)
_ROPE_TABLES = ("rope_parameters", "rope_scaling")
#: Sizes that every config.json gives; their defaults are those of some large model.
_GIVEN = SIZES.keys() - {"num_key_value_heads", "head_dim", "sliding_window"}


@dataclass(frozen=True, slots=True)
class Variation:
    """A config.json that differs in one field.

    Attributes:
        text: What differs, for people.
        names: Names by which a refusal may call the field.
        fields: The whole config.json.
        is_absence: Whether the field was left out: then its default must be met, even where that is
            what stood there.
    """

    text: str
    names: tuple[str, ...]
    fields: Mapping[str, Any]
    is_absence: bool = False


def variations(reference: Reference) -> Iterator[Variation]:
    """Yields the variations of a reference's small model."""
    base = reference.fields
    given = {reference.names.get(name, name) for name in _GIVEN}
    for name in sorted({*base, *CHANGES_MATHEMATICS, *_VALUES} - INERT.keys()):
        value = base.get(name)
        if name in _ROPE_TABLES:
            continue
        for changes in _changes(name, value, reference):
            yield _varied(base, changes)
        if name in base and name not in given:
            yield _without(base, name)
    yield from _ropes(base)


def _changes(name: str, value: Any, reference: Reference) -> Iterator[dict[str, Any]]:
    """Yields what to lay over a config.json to vary a field."""
    if name == "layer_types":
        yield from _layer_types(value, reference)
    elif isinstance(value, bool):
        yield {name: not value}
    elif isinstance(value, int):
        for other in {value * 2, max(1, value // 2)} - {value}:
            yield _resized(name, other, reference)
    elif isinstance(value, float):
        # Doubling a small epsilon would not show.
        yield from ({name: other} for other in {value * 2, value + 0.1} - {value})
    elif name.endswith(_ACTIVATION_FIELDS):
        yield from ({name: other} for other in _ACTIVATIONS if other != value)
    elif value is None and name in _VALUES:
        yield from ({name: other} for other in _VALUES[name])
    elif value is None and False in CHANGES_MATHEMATICS.get(name, ()):
        yield {name: True}


def _resized(name: str, size: int, reference: Reference) -> dict[str, Any]:
    changes: dict[str, Any] = {name: size}
    kinds = reference.fields.get("layer_types")
    if kinds and name == reference.names.get("num_hidden_layers", "num_hidden_layers"):
        changes["layer_types"] = [kinds[i % len(kinds)] for i in range(size)]
    return changes


def _layer_types(value: Any, reference: Reference) -> Iterator[dict[str, Any]]:
    if not isinstance(value, list):
        return
    other = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}
    flipped = [other.get(kind, kind) for kind in value]
    window = {"sliding_window": reference.fields.get("sliding_window") or WINDOW}
    if "use_sliding_window" in reference.fields:
        window["use_sliding_window"] = True
    for kinds in (flipped, [*flipped[:1], *value[1:]]):
        yield {"layer_types": kinds, **window}


def _ropes(base: Mapping[str, Any]) -> Iterator[Variation]:
    """Yields the variations of the rotary embedding, in both of its spellings."""
    table = base.get("rope_parameters")
    if not isinstance(table, dict):
        return
    kinds = [kind for kind, value in table.items() if isinstance(value, dict)]
    for kind in kinds:
        for changed in _tables(table[kind]):
            yield _varied(base, {"rope_parameters": {**table, kind: changed}})
    if kinds:
        return
    for changed in _tables(table):
        yield _varied(base, {"rope_parameters": changed})
    older = {n: v for n, v in base.items() if n != "rope_parameters"}
    older |= {n: v for n, v in table.items() if n != "rope_type"}
    yield _varied(older, {"rope_theta": 20 * table.get("rope_theta", 1e4)})
    yield _varied(older, {"rope_scaling": {"type": "linear", "factor": 4.0}})
    for scaling in _ROPES:
        yield _varied(older, {"rope_scaling": dict(scaling)})
    yield _without(base, "rope_parameters")


def _tables(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {**table, "rope_theta": 20 * table.get("rope_theta", 1e4)}
    yield {**table, "partial_rotary_factor": table.get("partial_rotary_factor", 1.0) / 2}
    yield from ({**table, **scaling} for scaling in _ROPES)


def _varied(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Variation:
    text = ", ".join(f"{name} = {value!r}" for name, value in changes.items())
    names = [*changes]
    for name in _ROPE_TABLES:
        if name in changes:
            names += ["rope_type", *(n for n, v in _flat(changes[name]) if v != base.get(n))]
    return Variation(text, tuple(names), {**base, **changes})


def _without(base: Mapping[str, Any], name: str) -> Variation:
    fields = {n: v for n, v in base.items() if n != name}
    return Variation(f"no {name}", (name,), fields, is_absence=True)


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield name, value
