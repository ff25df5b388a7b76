"""Cards and the index: what can be converted, as data. No plugin code runs here."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgezoo_core.errors import CardError, EdgezooError, listing, nearest
from edgezoo_core.shapes import SignatureOptions

#: Version of the layout of models.toml and registry.toml.
SCHEMA = 1

MODEL_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")
HUB_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model of a family.

    Attributes:
        id: What the user types.
        title: Name for people.
        checkpoint: Hub repo, `org/name`.
        revision: Branch, tag or commit of the repo.
        license: Name of the licence of the weights.
        is_gated: Whether the hub asks to accept the licence first.
        parameters: Number of weights, tied ones counted once.
        context_length: Longest sequence that the model was trained for, in tokens.
        recipes: Names of the recipes that suit the model.
        default_recipe: The one taken when none is named.
        signatures: The shapes taken when none are named.
        config: Stands in for config.json where the checkpoint has none.
    """

    id: str
    title: str
    checkpoint: str
    revision: str
    license: str
    is_gated: bool
    parameters: int
    context_length: int
    recipes: tuple[str, ...]
    default_recipe: str
    signatures: SignatureOptions
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class FamilyCard:
    """A plugin's `models.toml`.

    Attributes:
        family: Name of the family, equal to the entry point's.
        hook_api: Version of the hook contract that the plugin was written for.
        architectures: Values of config.json's `architectures` that the family re-authors.
        models: Its models by id.
    """

    family: str
    hook_api: int
    architectures: tuple[str, ...]
    models: Mapping[str, ModelCard]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of the index: a model that some distribution brings."""

    id: str
    distribution: str
    summary: str


class _Table:
    """A TOML table whose keys are taken one by one, so that a leftover is a misspelling."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where
        self.known: set[str] = set()

    def take(self, key: str, kind: type, default: Any = ...) -> Any:
        self.known.add(key)
        if key not in self.values:
            if default is not ...:
                return default
            raise CardError(f"{self.where}: {key} is missing", remedy=f"add `{key} = …`")
        value = self.values[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CardError(
                f"{self.where}: {key} is {value!r}, expected {_KINDS[kind]}",
                remedy=f"correct `{key}`",
            )
        return value

    def take_names(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list)
        if not values or not all(isinstance(v, str) and v for v in values):
            raise CardError(
                f"{self.where}: {key} is {values!r}, expected a list of names",
                remedy=f"correct `{key}`",
            )
        return tuple(values)

    def tables(self, key: str) -> list[_Table]:
        rows = self.take(key, list)
        if not all(isinstance(row, dict) for row in rows):
            raise CardError(f"{self.where}: {key} must be tables", remedy=f"write [[{key}]]")
        return [
            _Table(row, f"{self.where}: {key}[{row.get('id', i)}]") for i, row in enumerate(rows)
        ]

    def finish(self) -> None:
        unknown = sorted(self.values.keys() - self.known)
        if unknown:
            guess = nearest(unknown[0], self.known)
            raise CardError(
                f"{self.where}: unknown key {listing(unknown)}",
                remedy=f"did you mean `{guess}`?" if guess else "remove it",
            )


_KINDS = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def read_family(path: Path) -> FamilyCard:
    """Reads a plugin's `models.toml`.

    Raises:
        CardError: It cannot be read, or a key is missing, misspelt, or of the wrong kind.
    """
    table = _read(path)
    hook_api = table.take("hook_api", int)
    family = table.take("family", str)
    architectures = table.take_names("architectures")
    models: dict[str, ModelCard] = {}
    for row in table.tables("models"):
        card = _model(row)
        if card.id in models:
            raise CardError(f"{path}: two models are called {card.id}", remedy="rename one")
        models[card.id] = card
    table.finish()
    if not models:
        raise CardError(f"{path}: no models", remedy="add a [[models]] table")
    return FamilyCard(family, hook_api, architectures, models)


def read_index(path: Path) -> dict[str, IndexEntry]:
    """Reads a `registry.toml`: entries by model id.

    Raises:
        CardError: It cannot be read, or a key is missing, misspelt, or of the wrong kind.
    """
    table = _read(path)
    entries: dict[str, IndexEntry] = {}
    for row in table.tables("models"):
        entry = IndexEntry(
            row.take("id", str), row.take("distribution", str), row.take("summary", str)
        )
        row.finish()
        if entry.id in entries:
            raise CardError(f"{path}: {entry.id} stands twice", remedy="remove one")
        entries[entry.id] = entry
    table.finish()
    return entries


@cache
def index() -> Mapping[str, IndexEntry]:
    """Returns the index that this installation carries."""
    package = Path(__file__).parent
    # A wheel carries the file inside the package; an editable install has it one folder up.
    inside = package / "registry.toml"
    return read_index(inside if inside.is_file() else package.parent / "registry.toml")


def _read(path: Path) -> _Table:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise CardError(f"{path}: {e.strerror or e}", remedy="reinstall the distribution") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise CardError(f"{path}: not TOML: {e}", remedy="correct the file") from e
    table = _Table(values, str(path))
    schema = table.take("schema", int)
    if schema != SCHEMA:
        raise CardError(
            f"{path}: schema {schema}, expected {SCHEMA}",
            remedy="upgrade edgezoo-core" if schema > SCHEMA else f"set schema = {SCHEMA}",
        )
    return table


def _model(row: _Table) -> ModelCard:
    card = ModelCard(
        id=row.take("id", str),
        title=row.take("title", str),
        checkpoint=row.take("checkpoint", str),
        revision=row.take("revision", str, "main"),
        license=row.take("license", str),
        is_gated=row.take("gated", bool, False),
        parameters=row.take("parameters", int),
        context_length=row.take("context_length", int),
        recipes=row.take_names("recipes"),
        default_recipe=row.take("default_recipe", str),
        signatures=_signatures(row.take("signatures", dict, {}), row.where),
        config=row.take("config", dict, None),
    )
    row.finish()
    for ok, message in (
        (MODEL_ID.fullmatch(card.id), f"id {card.id!r} must be lower-case letters, digits, . _ -"),
        (HUB_REPO.fullmatch(card.checkpoint), f"checkpoint {card.checkpoint!r} is not org/name"),
        (
            card.default_recipe in card.recipes,
            f"default_recipe {card.default_recipe!r} not in recipes",
        ),
        (
            card.context_length >= card.signatures.kv_cache_length,
            "KV cache longer than the context",
        ),
    ):
        if not ok:
            raise CardError(f"{row.where}: {message}", remedy="correct the card")
    return card


def _signatures(values: dict[str, Any], where: str) -> SignatureOptions:
    table = _Table(values, f"{where}: signatures")
    default = SignatureOptions()
    prefill = table.take("prefill_lengths", list, list(default.prefill_lengths))
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in prefill):
        raise CardError(
            f"{table.where}: prefill_lengths must be integers", remedy="correct the card"
        )
    try:
        options = SignatureOptions(
            prefill_lengths=tuple(prefill),
            kv_cache_length=table.take("kv_cache_length", int, default.kv_cache_length),
            kv_layout=table.take("kv_layout", str, default.kv_layout),
            mask_as_input=table.take("mask_as_input", bool, default.mask_as_input),
        )
    except CardError:
        raise
    except EdgezooError as e:
        raise CardError(f"{table.where}: {e.message}", remedy="correct the card") from e
    table.finish()
    return options
