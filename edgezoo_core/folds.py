"""Factors that pass from a producer of activations into the weights that consume them.

Channel j of an activation is divided by 2**k and column j of every weight that reads it multiplied
by it. Powers of two are exact in floating point, so the model computes the same numbers, bit for
bit, while activations and weights share what is hard to quantize (https://arxiv.org/abs/2211.10438
moves it with any factors). The author of a model says which producer feeds which consumers; what
would not be exact is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgezoo_core.errors import PluginError, RecipeError, listing

Producer = Literal[
    "pre_attention_norm", "post_attention_norm", "pre_feedforward_norm", "value", "up", "final_norm"
]
Consumer = Literal["qkv", "o", "gate", "up", "down", "lm_head"]

#: Exponents are written as letters, 0 as the middle one.
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
#: The largest exponent, either way.
LARGEST = len(_LETTERS) // 2 - 1
_ZERO = LARGEST


@dataclass(frozen=True, slots=True)
class Fold:
    """What an author declares: all that read the output of a producer.

    Attributes:
        producer: A norm; `value`, the rows of qkv that give values; or `up` of a gated
            feed-forward.
        consumers: Every part that reads it, and nothing else may.
    """

    producer: Producer
    consumers: tuple[Consumer, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """Channels of a parameter that take a fold's exponents.

    Attributes:
        parameter: Name of the module's parameter.
        axis: 0 if rows are producers, divided; 1 if columns are consumers, multiplied.
        start: Row or column of the first channel.
        groups: Channels come in so many groups of neighbours,
        repeats: of which each stands so many times in turn (values that query heads share).
        is_centered: Whether the parameter is a norm's weight as its distance from one.
    """

    parameter: str
    axis: int
    start: int = 0
    groups: int = 1
    repeats: int = 1
    is_centered: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A fold of one layer, or behind the last.

    Attributes:
        name: As recipes spell it: `layers.3.up`, `final_norm`.
        channels: How many exponents it takes.
        targets: Where they go.
    """

    name: str
    channels: int
    targets: tuple[Target, ...]


def spell(exponents: Sequence[int]) -> str:
    """Returns exponents as a recipe file writes them: a letter for each, `m` for 0."""
    return "".join(_LETTERS[_ZERO + k] for k in exponents)


def parse(text: str) -> tuple[int, ...]:
    """Reads what `spell` wrote.

    Raises:
        ValueError: There is something else in it.
    """
    found = tuple(_LETTERS.find(letter) - _ZERO for letter in text)
    if not text or max(map(abs, found)) > LARGEST:
        raise ValueError(f"{text[:40]!r} is no row of letters from a to y")
    return found


def to_json(places: Sequence[Place]) -> list[Any]:
    """Returns places as plain values."""
    return [
        [
            p.name,
            p.channels,
            [[t.parameter, t.axis, t.start, t.groups, t.repeats, t.is_centered] for t in p.targets],
        ]
        for p in places
    ]


def from_json(value: Sequence[Any]) -> tuple[Place, ...]:
    """Reads what `to_json` wrote."""
    return tuple(Place(n, channels, tuple(Target(*t) for t in ts)) for n, channels, ts in value)


def match(
    places: Sequence[Place], exponents: Mapping[str, Sequence[int]], where: str
) -> Iterator[tuple[Place, Sequence[int]]]:
    """Yields each place of a model with the exponents that a recipe has for it.

    Raises:
        RecipeError: The recipe names a place that the model lacks, or one of another width.
    """
    known = {p.name: p for p in places}
    for name, values in exponents.items():
        if name not in known:
            raise RecipeError(
                f"the recipe folds {name}, which {where} does not",
                remedy="use the recipe for the model that it was made for",
            )
        if len(values) != known[name].channels:
            raise RecipeError(
                f"the recipe folds {len(values)} channels of {name}, which has"
                f" {known[name].channels} in {where}",
                remedy="use the recipe for the model that it was made for",
            )
        yield known[name], values


def places(module: Any) -> tuple[Place, ...]:
    """Returns where the folds that an author declared apply in a module, layer by layer.

    Args:
        module: An authored decoder; one without `folds` has none.

    Raises:
        PluginError: A declared fold is not exact for this model.
    """
    declared: Sequence[Fold] = getattr(module, "folds", ())
    found = []
    for fold in declared:
        if fold.producer == "final_norm":
            found.append(_final(module, fold))
            continue
        for index, block in enumerate(module.transformer_blocks):
            found.append(_PLACES[fold.producer](block, index, fold))
    names = [p.name for p in found]
    if len(set(names)) < len(names):
        raise _refused(declared[0], "a producer is declared twice")
    return tuple(found)


def _final(module: Any, fold: Fold) -> Place:
    _expect(fold, {"lm_head"})
    head = module.lm_head
    if head.weight is module.tok_embedding.weight:
        raise _refused(fold, "the head is the embedding, which would be multiplied, too")
    norm = _norm(module.final_norm, "final_norm", fold)
    return Place("final_norm", head.in_features, (*norm, Target("lm_head.weight", 1)))


def _pre_attention(block: Any, index: int, fold: Fold) -> Place:
    # With a parallel residual one norm serves attention and feed-forward.
    readers = _feedforward(block) if block.config.parallel_residual else set()
    if readers and _has_norm(block.ff.pre_ff_norm):
        raise _refused(fold, "a norm of its own stands before the feed-forward")
    _expect(fold, {"qkv", *readers})
    prefix = f"transformer_blocks.{index}"
    norm = _norm(block.pre_atten_norm, f"{prefix}.pre_atten_norm", fold)
    columns = [Target(f"{prefix}.atten_func.qkv_projection.weight", 1)]
    columns += _columns(block, prefix) if readers else []
    width = block.atten_func.qkv_projection.in_features
    return Place(f"layers.{index}.pre_attention_norm", width, (*norm, *columns))


def _post_attention(block: Any, index: int, fold: Fold) -> Place:
    _expect(fold, _feedforward(block))
    if block.config.parallel_residual or getattr(block.config, "norm_outputs", False):
        raise _refused(fold, "the norm is not what the feed-forward reads")
    if _has_norm(block.ff.pre_ff_norm):
        raise _refused(fold, "another norm stands before the feed-forward")
    return _before_feedforward(block, index, fold, "post_atten_norm", block.post_atten_norm)


def _pre_feedforward(block: Any, index: int, fold: Fold) -> Place:
    _expect(fold, _feedforward(block))
    return _before_feedforward(block, index, fold, "ff.pre_ff_norm", block.ff.pre_ff_norm)


def _before_feedforward(block: Any, index: int, fold: Fold, path: str, norm: Any) -> Place:
    prefix = f"transformer_blocks.{index}"
    rows = _norm(norm, f"{prefix}.{path}", fold)
    name = f"layers.{index}.{fold.producer}"
    return Place(name, block.ff.w1.in_features, (*rows, *_columns(block, prefix)))


def _value(block: Any, index: int, fold: Fold) -> Place:
    _expect(fold, {"o"})
    attention = block.atten_func
    config = attention.config
    if _has_norm(attention.value_norm):
        raise _refused(fold, "values are normalized")
    if not config.qkv_transpose_before_split or config.qkv_fused_interleaved:
        raise _refused(fold, "rows of q, k and v are not one after the other")
    groups, width = config.num_query_groups, config.head_dim
    prefix = f"transformer_blocks.{index}.atten_func"
    first = (config.num_heads + groups) * width
    rows = _linear(attention.qkv_projection, f"{prefix}.qkv_projection", first)
    repeats = config.num_heads // groups
    columns = Target(f"{prefix}.output_projection.weight", 1, 0, groups, repeats)
    return Place(f"layers.{index}.value", groups * width, (*rows, columns))


def _up(block: Any, index: int, fold: Fold) -> Place:
    _expect(fold, {"down"})
    if not _is_gated(block):
        raise _refused(fold, "an activation stands between them")
    prefix = f"transformer_blocks.{index}.ff"
    rows = _linear(block.ff.w3, f"{prefix}.w3", 0)
    return Place(
        f"layers.{index}.up", block.ff.w2.in_features, (*rows, Target(f"{prefix}.w2.weight", 1))
    )


_PLACES: Mapping[str, Callable[[Any, int, Fold], Place]] = {
    "pre_attention_norm": _pre_attention,
    "post_attention_norm": _post_attention,
    "pre_feedforward_norm": _pre_feedforward,
    "value": _value,
    "up": _up,
}


def _is_gated(block: Any) -> bool:
    return hasattr(block.ff, "w3")


def _feedforward(block: Any) -> set[str]:
    return {"gate", "up"} if _is_gated(block) else {"up"}


def _columns(block: Any, prefix: str) -> list[Target]:
    names = ("w1", "w3") if _is_gated(block) else ("w1",)
    return [Target(f"{prefix}.ff.{name}.weight", 1) for name in names]


def _linear(linear: Any, path: str, start: int) -> list[Target]:
    rows = [Target(f"{path}.weight", 0, start)]
    return rows if linear.bias is None else [*rows, Target(f"{path}.bias", 0, start)]


def _has_norm(norm: Any) -> bool:
    return hasattr(norm, "weight")


def _norm(norm: Any, path: str, fold: Fold) -> list[Target]:
    """Returns what a norm multiplies by and adds: scaling both scales its output."""
    if not _has_norm(norm):
        raise _refused(fold, "there is no such norm")
    if getattr(norm, "with_scale", False):
        raise _refused(fold, "the norm has a second scale")
    centered = bool(getattr(norm, "zero_centered_gamma", False))
    rows = [Target(f"{path}.weight", 0, is_centered=centered)]
    if getattr(norm, "bias", None) is not None:
        rows.append(Target(f"{path}.bias", 0))
    return rows


def _expect(fold: Fold, consumers: set[str]) -> None:
    if set(fold.consumers) != consumers:
        raise _refused(fold, f"what reads it is {listing(sorted(consumers))}")


def _refused(fold: Fold, reason: str) -> PluginError:
    return PluginError(
        f"the fold {fold.producer} -> {', '.join(fold.consumers)} is not exact: {reason}",
        remedy="correct or remove it where the plugin's author hook declares it",
    )
