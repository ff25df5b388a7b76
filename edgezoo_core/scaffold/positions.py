"""Rotary positions and sliding windows of a drafted author."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgezoo_core.rope import SCALINGS
from edgezoo_core.scaffold.code import call
from edgezoo_core.scaffold.facts import Facts
from edgezoo_core.scaffold.fields import literal

#: The longest pattern of windows that is looked for, in layers.
LONGEST_PATTERN = 12


def rope(facts: Facts) -> list[str] | None:
    """Returns the arguments of `config.rope`; None for a family without rotary positions."""
    fields, known = facts.fields, facts.known
    if known.declared and "rope_parameters" not in known.declared:
        return None
    fields.read |= {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"}
    arguments = []
    base, share = fields.spelling("theta"), fields.spelling("partial_factor")
    if base:
        arguments.append(fields.call("number", base, literal(known.default_theta)))
    elif known.default_theta != 10000:
        arguments.append(literal(known.default_theta))
    default = _table(known.defaults.get("rope_parameters")).get("partial_rotary_factor")
    if share:
        code = fields.call("number", share, literal(default))
        arguments.append(f"default_partial_factor={code}")
    elif default is not None:
        arguments.append(f"default_partial_factor={literal(default)}")
    elif not known.declared and fields.has("partial_rotary_factor"):
        arguments.append("default_partial_factor=1.0")
    kinds = ", ".join(f'"{kind}"' for kind in SCALINGS)
    return [*arguments, f"scaling=({kinds})"]


def scaling(facts: Facts) -> str | None:
    """Returns the kind of scaled rope that the source has and that is not implemented."""
    for name in ("rope_parameters", "rope_scaling"):
        table = _table(facts.source.config.get(name))
        if any(isinstance(value, dict) for value in table.values()):
            return "one for each type of layer"
        kind = table.get("rope_type", table.get("type", "default"))
        if kind != "default" and kind not in SCALINGS:
            return str(kind)
    return None


def windows(facts: Facts) -> list[str]:
    """Returns the statements that find the window of each layer; none for a family without."""
    fields, known = facts.fields, facts.known
    if not fields.has("sliding_window") and not fields.has("layer_types"):
        return []
    fields.read |= {"sliding_window", "layer_types"}
    default = literal(known.declared.get("sliding_window"))
    statements = []
    if fields.has("use_sliding_window") and fields.has("max_window_layers"):
        has_windows = fields.call("flag", "use_sliding_window", "False")
        statements = [
            f"    has_windows = {has_windows}",
            f"    first = {fields.call('integer', 'max_window_layers')}",
        ]
        rule = "lambda i: has_windows and i >= first"
    elif fields.has("layer_types"):
        rule = _rule(known.defaults.get("layer_types") or fields.value("layer_types"))
    else:
        absent = f", {default}" if default else ""
        rule = f'lambda _: config.get("sliding_window"{absent}) is not None'
    arguments = ["num_layers", rule, *([default] if default else [])]
    return [*statements, call("config.sliding_windows", arguments, target="windows")]


def _rule(types: Any) -> str:
    """Returns the code that says which layers have a window where the config does not list them."""
    slides = [t == "sliding_attention" for t in types] if isinstance(types, Sequence) else []
    if not any(slides):
        return "lambda _: False"
    for period in range(2, LONGEST_PATTERN + 1):
        if slides == [bool((i + 1) % period) for i in range(len(slides))]:
            return f"lambda i: (i + 1) % {period} != 0"
    return "lambda _: True"


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
