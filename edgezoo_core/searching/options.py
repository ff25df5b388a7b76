"""What can be chosen: a format for each group of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgezoo_core.recipe import FORMATS
from edgezoo_core.types import WeightFormat, WeightRule

#: Formats to choose from, the coarsest first.
CHOICES = ("dynamic_int4_block32", "dynamic_int8", "weight_only_int8", "fp16")
#: Time that a weight takes in a step of decode, of what it takes in dynamic_int8. Measured on an
#: x86 server with LiteRT's XNNPACK kernels (BENCHMARKS.md, "Formats to choose from"); other
#: processors differ, yet hardly in their order.
WORK: Mapping[str, float] = {
    "dynamic_int4_block32": 0.65,
    "dynamic_int8": 1.0,
    "weight_only_int8": 3.1,
    "fp16": 3.1,
}
#: Tokens that say what a choice loses.
TOKENS = 128
#: Parts that read the output of one producer, which is folded for all of them alike.
_TOGETHER = {"gate": "gate+up", "up": "gate+up"}


@dataclass(frozen=True, slots=True)
class Option:
    """A format for a group.

    Attributes:
        format: See `CHOICES`.
        loss: Mean KL in nats if this group alone is stored so and all else is float32.
        size_bytes: Of its weights.
        work: Time that they take in decode, in weights of dynamic_int8.
    """

    format: str
    loss: float
    size_bytes: int
    work: float


@dataclass(frozen=True, slots=True)
class Group:
    """Weights that get one format.

    Attributes:
        name: `layers.3.gate+up`, `embedding`.
        layer: None outside of the blocks.
        rules: Each use of one of its weights.
    """

    name: str
    layer: int | None
    rules: tuple[WeightRule, ...]

    def formats(self) -> list[WeightFormat]:
        """Returns the formats that its weights can have, the coarsest first."""
        found = []
        is_read = any(r.operator == "FULLY_CONNECTED" for r in self.rules)
        for name in CHOICES:
            fmt = FORMATS[name]
            if fmt is None or any(r.shape[1] % (fmt.block_size or 1) for r in self.rules):
                continue
            # A table that is only looked up computes nothing: both ways of int8 are one.
            if is_read or name != "weight_only_int8":
                found.append(fmt)
        return found

    def parameters(self) -> list[str]:
        """Returns the module's parameters that its weights are, each once."""
        return list(dict.fromkeys(r.parameter for r in self.rules))

    def path(self, parameter: str) -> str | None:
        """Returns the Linear that reads with a parameter, None if it is only looked up."""
        readers = {r.part for r in self.rules if r.operator == "FULLY_CONNECTED"}
        if "lm_head" in readers:  # by the name of the embedding, where the two are tied
            return "lm_head"
        return parameter.removesuffix(".weight") if readers else None

    def size_bytes(self, fmt: WeightFormat) -> int:
        """Returns what the group takes in a format; a tied weight is stored once."""
        stored = {r.parameter: r.shape for r in self.rules}
        return sum(fmt.size_bytes(shape) for shape in stored.values())

    def work(self, fmt: WeightFormat) -> float:
        """Returns the time that it takes in decode, in weights of dynamic_int8."""
        read = (r.shape for r in self.rules if r.operator == "FULLY_CONNECTED")
        return WORK[fmt.name] * sum(rows * columns for rows, columns in read)


def groups(rules: Sequence[WeightRule]) -> list[Group]:
    """Returns what can be chosen for, in the order of the model.

    Args:
        rules: Each use of a weight of the model.
    """
    found: dict[str, list[WeightRule]] = {}
    names: dict[str, str] = {}
    for rule in rules:
        part = _TOGETHER.get(rule.part, rule.part)
        name = part if rule.layer is None else f"layers.{rule.layer}.{part}"
        # The head goes with the embedding that it is tied to.
        name = names.setdefault(rule.parameter, name)
        found.setdefault(name, []).append(rule)
    return [Group(name, held[0].layer, tuple(held)) for name, held in found.items()]


@dataclass(frozen=True, slots=True)
class Measured:
    """A group and its options, as a worker found them.

    Attributes:
        name: Of the group.
        layer: None outside of the blocks.
        parts: Which parts of a recipe it is.
        places: Where what its weights read is folded.
        options: The coarsest first.
    """

    name: str
    layer: int | None
    parts: tuple[str, ...]
    places: tuple[str, ...]
    options: tuple[Option, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measured:
        """Reads plain values."""
        options = tuple(Option(**option) for option in value["options"])
        parts, places = tuple(value["parts"]), tuple(value["places"])
        return cls(value["name"], value["layer"], parts, places, options)
