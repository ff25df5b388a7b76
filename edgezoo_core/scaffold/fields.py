"""The fields of a config.json that a draft reads, under the names that this family gives them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgezoo_core.scaffold.knowledge import Knowledge

#: What a field means -> how families spell it.
SPELLINGS: Mapping[str, Sequence[str]] = {
    "embedding_dim": ("hidden_size", "n_embd", "d_model"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_query_groups": ("num_key_value_heads", "num_kv_heads", "n_kv_heads"),
    "head_dim": ("head_dim",),
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "vocab_size": ("vocab_size",),
    "max_seq_len": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "epsilon": (
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "norm_eps",
        "norm_epsilon",
    ),
    "activation": ("hidden_act", "hidden_activation", "activation_function", "activation"),
    # Older spellings of the rotary positions, beside those that `Config.rope` reads.
    "theta": ("rotary_emb_base",),
    "partial_factor": ("rotary_pct", "rope_pct"),
}


#: Roles whose older spellings transformers' classes take without declaring them.
_UNDECLARED = ("max_seq_len", "theta", "partial_factor")


class Fields:
    """A config beside transformers' class for it, remembering which fields the draft reads.

    Attributes:
        read: Their names.
    """

    def __init__(self, config: Mapping[str, Any], known: Knowledge) -> None:
        self._config = config
        self._known = known
        self.read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the config says something about a field, or transformers' class does."""
        return self._config.get(name) is not None or name in self._known.declared

    def spelling(self, role: str) -> str | None:
        """Returns how this family spells a field, or None if it has none such."""
        names = [n for n in SPELLINGS[role] if self.has(n)]
        declared = [n for n in names if n in self._known.declared]
        # A field that transformers' class does not declare means nothing to the model.
        if declared or (self._known.declared and role not in _UNDECLARED):
            names = declared
        told = [n for n in names if n in self._config]
        return next(iter(told or names), None)

    def value(self, name: str | None) -> Any:
        """Returns what the config says, or else what transformers' class makes of it."""
        if name is None:
            return None
        value = self._config.get(name)
        return self._known.meant.get(name) if value is None else value

    def size(self, role: str) -> int | None:
        """Returns a size, or None if nobody says."""
        value = self.value(self.spelling(role))
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def integer(self, role: str, otherwise: str = "") -> str:
        """Returns the code that reads a size.

        Args:
            role: One of `SPELLINGS`.
            otherwise: Code for the default where transformers' class computes it.
        """
        name = self.spelling(role)
        if name is None:
            return otherwise or self.call("integer", SPELLINGS[role][0])
        return self.call("integer", name, otherwise)

    def call(self, kind: str, name: str, otherwise: str = "") -> str:
        """Returns the code that reads a field by one of Config's methods."""
        self.read.add(name)
        default = self._known.declared.get(name)
        code = otherwise if default is None else literal(default)
        return f'config.{kind}("{name}"{", " + code if code else ""})'


def literal(value: Any) -> str:
    """Returns the code of a plain value; empty where there is none such.

    What stands in a config.json ends in a program here: only numbers, flags and short words do.
    """
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-") if math.isfinite(value) else ""
    if isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, str) and value.isascii() and value.isprintable() and len(value) <= 40:
        return json.dumps(value) if '"' not in value and "\\" not in value else ""
    return ""
