"""config.json as an author reads it: every field read, inert with a reason, or refused."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, TypeVar

from edgezoo_core.config_fields import INERT
from edgezoo_core.errors import ConfigError, listing
from edgezoo_core.rope import SCALINGS, LinearScaling, Llama3Scaling, Rope

T = TypeVar("T")


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()

#: Of what a config counts. The largest vocabulary and the longest context have a few millions.
LARGEST = 1 << 27
#: Each layer is authored before any tensor is looked for; the deepest model has some hundreds.
MOST_LAYERS = 1000
_LAYERS = re.compile(r"layers?$")


class Config(Mapping[str, Any]):
    """The fields of a `config.json`, remembering which were read.

    The accessors take the default that transformers' own configuration class has, since older
    checkpoints leave such fields out.

    Args:
        fields: The parsed file.
        where: Names the file in messages.
    """

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields = dict(fields)
        self._read: set[str] = set()
        self._inert: dict[str, str] = {}
        self._is_read_whole = False
        self.where = where

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        self._is_read_whole = True
        return iter(self._fields)

    def __len__(self) -> int:
        self._is_read_whole = True
        return len(self._fields)

    def integer(self, name: str, default: int | _Required = REQUIRED) -> int:
        """Returns a positive integer.

        Raises:
            ConfigError: It is missing without a default, no positive integer, or larger than any
                size of a model (`LARGEST`), so that nobody counts up to it.
        """
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._wrong(name, value, "a positive integer")
        largest = MOST_LAYERS if _LAYERS.search(name) else LARGEST
        if value > largest:
            raise self._wrong(name, value, f"at most {largest:,}")
        return value

    def number(self, name: str, default: float | _Required = REQUIRED) -> float:
        """Returns a finite positive number.

        Raises:
            ConfigError: It is missing without a default, or not such a number.
        """
        return self._number(name, self._value(name, default))

    def optional(self, name: str, default: float | None = None) -> float | None:
        """Returns a finite positive number, or None where the field is null.

        Args:
            name: The field.
            default: What an absent field means; a null one means None.

        Raises:
            ConfigError: It is neither null nor such a number.
        """
        self._read.add(name)
        value = self._fields.get(name, default)
        return None if value is None else self._number(name, value)

    def flag(self, name: str, default: bool | _Required = REQUIRED) -> bool:
        """Returns a boolean.

        Raises:
            ConfigError: It is missing without a default, or no boolean.
        """
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def choice(
        self, name: str, meanings: Mapping[str, T], default: str | _Required = REQUIRED
    ) -> T:
        """Returns what the field's value means in `meanings`.

        Raises:
            ConfigError: It is missing without a default, or none of `meanings`.
        """
        value = self._value(name, default)
        if not isinstance(value, str) or value not in meanings:
            raise self.refused(name, value, f"implemented: {listing(sorted(meanings))}")
        return meanings[value]

    def only(self, name: str, *allowed: Any) -> None:
        """Accepts the field where it is absent or has one of the allowed values.

        Raises:
            ConfigError: It has another value: something that the author did not implement.
        """
        value = self._value(name, allowed[0])
        if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
            raise self.refused(name, value, f"implemented: {listing(repr(a) for a in allowed)}")

    def inert(self, name: str, reason: str) -> None:
        """Declares that the field cannot change the graph, and why."""
        self._inert[name] = reason

    def rope(
        self,
        default_theta: float = 10000.0,
        default_partial_factor: float | None = None,
        *,
        scaling: Collection[str] = (),
        layer_type: str | None = None,
    ) -> Rope:
        """Returns the rotary embedding, in the older spelling or the newer.

        Older: `rope_theta`, `partial_rotary_factor`, `rope_scaling` side by side. Newer
        (transformers 5): all of them in `rope_parameters`, one table per type of layer where those
        differ.

        Args:
            default_theta: Base where none is given.
            default_partial_factor: Share of each head where none is given; None for a family that
                always rotates whole heads, as transformers then ignores the field.
            scaling: Names in `SCALINGS` that the family may use; any other is refused.
            layer_type: `full_attention` or `sliding_attention`, for a family that has a rope of
                each. Only the newer spelling has both, so the older is then refused.

        Raises:
            ConfigError: Another kind of scaling, an unknown field of it, a share that the family
                does not have, or the two spellings disagree.
        """
        if layer_type is not None:
            self.only("rope_theta", None)
            self.only("rope_scaling", None)
        nested: dict[str, Any] = {}
        scaled: LinearScaling | Llama3Scaling | None = None
        for field in ("rope_parameters", "rope_scaling"):
            table = self._rope_table(field, layer_type)
            scaled = self._scaling(field, table, scaling) or scaled
            nested.update(table)
        theta = self._rope_field("rope_theta", nested, default_theta)
        factor = self._rope_field("partial_rotary_factor", nested, default_partial_factor or 1.0)
        if default_partial_factor is None and factor != 1:
            raise self.refused("partial_rotary_factor", factor, "whole heads are rotated")
        if factor > 1:
            raise self._wrong("partial_rotary_factor", factor, "at most 1")
        return Rope(theta, factor, scaled)

    def sliding_windows(
        self,
        num_layers: int,
        is_sliding: Callable[[int], bool],
        default_window: int | _Required = REQUIRED,
    ) -> list[int | None]:
        """Returns how many tokens each layer sees, the token itself included; None for all.

        Args:
            num_layers: Layers of the model.
            is_sliding: Whether the layer of an index has a window, where the config does not list
                `layer_types`: older ones do not.
            default_window: Tokens where `sliding_window` is not given.

        Raises:
            ConfigError: `layer_types` has another length or an unknown type, or `sliding_window` is
                missing though some layer has one.
        """
        types = self._value("layer_types", None)
        if types is None:
            names = ("full_attention", "sliding_attention")
            types = [names[bool(is_sliding(i))] for i in range(num_layers)]
        if not isinstance(types, list) or len(types) != num_layers:
            raise self._wrong("layer_types", types, f"a list of {num_layers} names")
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                raise self.refused(
                    "layer_types", kind, "implemented: 'full_attention', 'sliding_attention'"
                )
        if "sliding_attention" not in types:
            self.inert("sliding_window", "no layer has one")
            return [None] * num_layers
        window = self.integer("sliding_window", default_window)
        return [window if kind == "sliding_attention" else None for kind in types]

    def _rope_table(self, field: str, layer_type: str | None) -> dict[str, Any]:
        table = self._value(field, None)
        if table is None:
            return {}
        if isinstance(table, dict) and layer_type is not None:
            table = table.get(layer_type)
        if not isinstance(table, dict):
            of = f" with one for {layer_type}" if layer_type else ""
            raise self._wrong(field, self._fields[field], f"an object{of}")
        return {name: value for name, value in table.items() if value is not None}

    def _scaling(
        self, field: str, table: Mapping[str, Any], allowed: Collection[str]
    ) -> LinearScaling | Llama3Scaling | None:
        kind = table.get("rope_type", table.get("type", "default"))
        if kind != "default" and kind not in allowed:
            implemented = listing(sorted({"default", *allowed}))
            raise self.refused(f"{field}.rope_type", kind, f"implemented: {implemented}")
        names = [f.name for f in dataclasses.fields(SCALINGS[kind])] if kind != "default" else []
        known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *names}
        unknown = sorted(table.keys() - known)
        if unknown:
            name = unknown[0]
            raise self.refused(f"{field}.{name}", table[name], f"rope_type {kind!r} has none")
        if kind == "default":
            return None
        missing = [n for n in names if n not in table]
        if missing:
            raise self._wrong(field, dict(table), f"{missing[0]} for rope_type {kind!r}")
        return SCALINGS[kind](**{n: self._number(f"{field}.{n}", table[n]) for n in names})

    def _rope_field(self, name: str, nested: Mapping[str, Any], default: float) -> float:
        outer = self._value(name, None)
        inner = nested.get(name)
        if outer is not None and inner is not None and outer != inner:
            raise ConfigError(
                f"{self.where}: {name} is {outer!r}, but {inner!r} in rope_parameters",
                remedy="find out which the model was trained with and remove the other",
            )
        value = outer if outer is not None else inner
        return self._number(name, default if value is None else value)

    def refused(self, name: str, value: Any, why: str) -> ConfigError:
        """Returns the error for a field whose value the author does not implement."""
        return ConfigError(
            f"{self.where}: {name} = {value!r} is not implemented by this family ({why})",
            remedy="use a checkpoint without it, or a plugin that implements it",
        )

    def leftovers(self) -> dict[str, Any]:
        """Returns the fields that are neither read nor inert: unknown."""
        known = self._read | INERT.keys() | self._inert.keys()
        return {name: value for name, value in self._fields.items() if name not in known}

    def reading(self) -> dict[str, Any]:
        """Returns what an author's answer depends on, for `is_same_reading`. Plain values."""
        read = self._fields.keys() | self._read if self._is_read_whole else self._read
        return {
            "present": {n: self._fields[n] for n in sorted(read) if n in self._fields},
            "absent": sorted(n for n in read if n not in self._fields),
            "inert": sorted(self._inert.keys() - read),
            "others": {} if self._is_read_whole else dict(sorted(self.leftovers().items())),
            "is_whole": self._is_read_whole,
        }

    def account(self) -> dict[str, Any]:
        """Returns what became of every field: names that were read, and reasons of the inert."""
        reasons = {**INERT, **self._inert}
        return {
            "read": sorted(self._read & self._fields.keys()),
            "inert": {
                n: reasons[n] for n in sorted(self._fields) if n in reasons and n not in self._read
            },
            "unknown": dict(sorted(self.leftovers().items())),
        }

    def _value(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self._fields.get(name)
        if value is None:
            if default is REQUIRED:
                raise ConfigError(
                    f"{self.where}: {name} is missing",
                    remedy="add it to the checkpoint's config.json",
                )
            return default
        return value

    def _number(self, name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            raise self._wrong(name, value, "a positive number")
        return float(value)

    def _wrong(self, name: str, value: Any, expected: str) -> ConfigError:
        return ConfigError(
            f"{self.where}: {name} is {value!r}, expected {expected}",
            remedy="correct the checkpoint's config.json",
        )


def is_same_reading(reading: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Whether an author who gave this reading would see nothing new in these fields.

    Args:
        reading: What `Config.reading` returned for other fields.
        fields: A parsed config.json.
    """
    present = reading["present"]
    if any(not _is_same(value, fields.get(n, REQUIRED)) for n, value in present.items()):
        return False
    if any(n in fields for n in reading["absent"]):
        return False
    known = present.keys() | INERT.keys() | set(reading["inert"])
    if reading["is_whole"]:
        known = present.keys()
    others = {n: v for n, v in fields.items() if n not in known}
    return _is_same(reading["others"], others)


def _is_same(a: Any, b: Any) -> bool:
    """Compares plain values as JSON does: 1, 1.0 and true are three values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_is_same(v, b[k]) for k, v in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(_is_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
