"""What transformers knows about a config: its class, the defaults of it, and how it reads one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Knowledge:
    """transformers' configuration class for one config; all empty where it has none.

    Attributes:
        module: Dotted name of the package that holds the class, `transformers.models.qwen2`.
        declared: Default by field, as the class declares it; None where it is computed.
        defaults: Value by field of a config that says nothing.
        meant: Value by field of this config, as the class reads it.
        default_theta: Base of the rotary positions where a config names none.
    """

    module: str = ""
    declared: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    meant: Mapping[str, Any] = field(default_factory=dict)
    default_theta: float = 10000.0


def look_up(config: Mapping[str, Any]) -> Knowledge:
    """Asks transformers for the class of a config's `model_type`; imports it."""
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        return Knowledge()
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return Knowledge()
    found: Any = CONFIG_MAPPING[kind]
    try:
        meant = found.from_dict(dict(config)).to_dict()
    except Exception:  # the config is what somebody uploaded: it may be anything
        meant = {}
    theta = getattr(found, "default_theta", None)  # Gemma 3 has one for each type of layer
    return Knowledge(
        module=found.__module__.rpartition(".")[0],
        declared={
            f.name: None if f.default is dataclasses.MISSING else f.default
            for f in dataclasses.fields(found)
        },
        defaults=found().to_dict(),
        meant=meant,
        default_theta=float(theta) if isinstance(theta, int | float) else 10000.0,
    )
