"""Cards: what a family can convert, as data. No plugin code runs here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgezoo_core.errors import CardError, EdgezooError, listing, nearest
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.tables import Table, read_table

#: What a family may claim beyond what every plugin must hold; `edgezoo_core.testkit` checks it.
CAPABILITIES = ("prefill_lengths", "int4", "transposed_kv", "mask_input", "long_context")

MODEL_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")
HUB_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


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
class Conformance:
    """What `edgezoo_core.testkit` has to know of a family.

    Attributes:
        capabilities: Which of `CAPABILITIES` the family claims.
        config: Laid over the config.json of the small model that is made for the checks; the whole
            of it where transformers has no such architecture.
        reference: `package.module:function`, where transformers has no such architecture: from the
            folder of a checkpoint to a function from tokens, int64 [1, T], to logits, float32
            [1, T, V].
    """

    capabilities: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class FamilyCard:
    """A plugin's `models.toml`.

    Attributes:
        family: Name of the family, equal to the entry point's.
        hook_api: Version of the hook contract that the plugin was written for.
        architectures: Values of config.json's `architectures` that the family re-authors.
        models: Its models by id.
        conformance: What the family claims, and what its checks need.
    """

    family: str
    hook_api: int
    architectures: tuple[str, ...]
    models: Mapping[str, ModelCard]
    conformance: Conformance = field(default_factory=Conformance)


def read_family(path: Path) -> FamilyCard:
    """Reads a plugin's `models.toml`.

    Raises:
        CardError: It cannot be read, or a key is missing, misspelt, or of the wrong kind.
    """
    table = read_table(path)
    hook_api = table.take("hook_api", int)
    family = table.take("family", str)
    architectures = table.take_names("architectures")
    models: dict[str, ModelCard] = {}
    for row in table.tables("models"):
        card = _model(row)
        if card.id in models:
            raise CardError(f"{path}: two models are called {card.id}", remedy="rename one")
        models[card.id] = card
    conformance = _conformance(table.take("conformance", dict, {}), str(path))
    table.finish()
    if not models:
        raise CardError(f"{path}: no models", remedy="add a [[models]] table")
    return FamilyCard(family, hook_api, architectures, models, conformance)


def _model(row: Table) -> ModelCard:
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
    table = Table(values, f"{where}: signatures")
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


def _conformance(values: dict[str, Any], path: str) -> Conformance:
    table = Table(values, f"{path}: conformance")
    capabilities = table.take("capabilities", list, [])
    for name in capabilities:
        if name not in CAPABILITIES:
            guess = nearest(str(name), CAPABILITIES)
            raise CardError(
                f"{table.where}: unknown capability {name!r}",
                remedy=f"did you mean `{guess}`?" if guess else f"known: {listing(CAPABILITIES)}",
            )
    reference = table.take("reference", str, None)
    if reference is not None and not _FUNCTION.fullmatch(reference):
        raise CardError(
            f"{table.where}: reference is {reference!r}, expected package.module:function",
            remedy="correct `reference`",
        )
    found = Conformance(tuple(capabilities), table.take("config", dict, {}), reference)
    table.finish()
    return found
