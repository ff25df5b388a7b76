"""What becomes of the config fields that a draft does not read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgezoo_core.config_fields import CHANGES_MATHEMATICS, INERT
from edgezoo_core.scaffold.fields import literal
from edgezoo_core.scaffold.knowledge import Knowledge

#: Fields that change the mathematics in ways that a draft does not see, with the value that does
#: not. The draft refuses any other by name, also where it is the default of transformers' class.
REFUSED: Mapping[str, Any] = {
    "alibi": False,
    "attn_config": None,
    "no_rope_layers": None,
    "position_embedding_type": None,
    "rotary_dim": None,
}

#: Fields of some families that cannot change the graph, with the reason why.
HARMLESS: Mapping[str, str] = {
    "pretraining_tp": "splits matrix products into parts that add up to the same",
    "sliding_window_pattern": "layer_types lists what it stands for",
    "_sliding_window_pattern": "layer_types lists what it stands for",
}

_NAME = re.compile(r"[A-Za-z_]\w{0,39}", re.ASCII)
_DROPOUT = re.compile(r"dropout|pdrop|layerdrop")


@dataclass(frozen=True, slots=True)
class Undecided:
    """A config field that the author of the plugin has to decide about."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Fields that the draft does not read.

    Attributes:
        pinned: Name -> code of the only value that is allowed.
        inert: Name -> why it cannot change the graph.
        undecided: The rest.
    """

    pinned: Mapping[str, str]
    inert: Mapping[str, str]
    undecided: tuple[Undecided, ...]


def settle(config: Mapping[str, Any], read: Collection[str], known: Knowledge) -> Leftovers:
    """Pins what is known to be harmless at its value, or not known at all, and lists the rest."""
    pinned: dict[str, str] = {}
    inert: dict[str, str] = {}
    undecided: list[Undecided] = []
    for name, value in sorted(config.items()):
        default = known.defaults.get(name)
        if name in read or name in INERT or name in HARMLESS:
            continue
        if name in REFUSED:
            if value != REFUSED[name]:
                undecided.append(Undecided(name, value, "refused: not implemented in the draft"))
        elif name in CHANGES_MATHEMATICS:
            if value not in CHANGES_MATHEMATICS[name]:
                undecided.append(Undecided(name, value, "refused: it changes the mathematics"))
        elif _DROPOUT.search(name) and _NAME.fullmatch(name):
            inert[name] = "matters in training only"
        elif name in known.defaults and value != default:
            reason = f"refused: transformers' default is {default!r}"
            undecided.append(Undecided(name, value, reason))
        elif value is not None and _NAME.fullmatch(name) and literal(value):
            pinned[name] = literal(value)
        elif value is not None and name not in known.defaults:
            undecided.append(Undecided(name, value, "ignored with a warning: nobody knows it"))
    inert |= {n: r for n, r in HARMLESS.items() if n in config or n in known.declared}
    for name, neutral in REFUSED.items():
        if name in config or name in known.declared:
            pinned[name] = repr(neutral)
    return Leftovers(dict(sorted(pinned.items())), inert, tuple(undecided))
