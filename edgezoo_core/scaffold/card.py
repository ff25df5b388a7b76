"""The first card of a new family: what its source says about the model."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edgezoo_core.cards import MODEL_ID
from edgezoo_core.recipe import DEFAULT, FORMATS, RECIPES
from edgezoo_core.scaffold.facts import Facts
from edgezoo_core.scaffold.identity import Identity
from edgezoo_core.scaffold.names import Sizes
from edgezoo_core.scaffold.source import PLACEHOLDER
from edgezoo_core.shapes import Shapes, SignatureOptions, complete

#: Tokens that a model is said to take where config.json does not say.
USUAL_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class CardDraft:
    """A card as it is written.

    Attributes:
        to_fill_in: Keys that nobody said anything about.
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
    to_fill_in: tuple[str, ...]


def draft_card(facts: Facts, names: Identity, taken: Collection[str]) -> CardDraft:
    """Drafts the card of the model that the source holds.

    Args:
        facts: The source.
        names: What the family is called.
        taken: Ids of other families' models: two that claim one would both be left out.
    """
    source = facts.source
    organization, _, name = source.repo.partition("/")
    parameters = count(source.shapes, is_tied=facts.fields.value("tie_word_embeddings") is True)
    context = facts.fields.size("max_seq_len") or USUAL_CONTEXT
    absent = {
        "checkpoint": organization == PLACEHOLDER,
        "license": source.license == "unknown",
        "parameters": not parameters,
        "context_length": facts.fields.size("max_seq_len") is None,
    }
    return CardDraft(
        id=_id(name, names.family, taken),
        title=name,
        checkpoint=source.repo,
        revision=source.revision,
        license=source.license,
        is_gated=source.is_gated,
        parameters=parameters,
        context_length=context,
        recipes=recipes(facts.sizes),
        default_recipe=DEFAULT,
        signatures=complete(Shapes(), SignatureOptions(), context),
        to_fill_in=tuple(key for key, is_absent in absent.items() if is_absent),
    )


def count(shapes: Mapping[str, tuple[int, ...]], *, is_tied: bool) -> int:
    """Returns the number of weights; a head that is the embedding counts once."""
    heads = ("lm_head.weight",) if is_tied else ()
    return sum(math.prod(shape) for name, shape in shapes.items() if name not in heads)


def recipes(sizes: Sizes) -> tuple[str, ...]:
    """Returns the recipes whose blocks divide the input of every matrix."""
    queries = sizes.expected("attn_query_proj")[0]
    widths = [w for w in (sizes.embedding_dim, queries, sizes.intermediate_size) if w]
    blocks = {name: f.block_size for name, f in FORMATS.items() if f and f.block_size}
    return tuple(
        name for name in RECIPES if all(width % blocks.get(name, 1) == 0 for width in widths)
    )


def _id(name: str, family: str, taken: Collection[str]) -> str:
    found = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")
    if not MODEL_ID.fullmatch(found):
        return family
    return f"{family}-{found}" if found in taken else found
