"""What TARGET means: a model id, a hub repo, or a folder; and which family converts it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core import registry
from edgezoo_core.cards import HUB_REPO, ModelCard
from edgezoo_core.errors import TargetError, listing, nearest

if TYPE_CHECKING:
    from edgezoo_core.plugins import Plugin


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed TARGET: exactly one of `repo` and `folder` is set.

    Attributes:
        name: What the artifact's file name begins with.
        card: The model's card, if it has one.
        repo: Hub repo, `org/name`.
        revision: Its branch, tag or commit.
        folder: A local folder.
    """

    name: str
    card: ModelCard | None = None
    repo: str | None = None
    revision: str = "main"
    folder: Path | None = None

    def __str__(self) -> str:
        return str(self.folder) if self.folder else f"{self.repo}@{self.revision}"


def parse(
    text: str, plugins: Sequence[Plugin], *, revision: str | None = None, card: str | None = None
) -> Target:
    """Parses a TARGET.

    Args:
        text: A model id, `org/name[@revision]`, or a path that begins with `.`, `/` or `~`.
        plugins: What is installed.
        revision: Overrides the card's or the target's revision.
        card: Id of the card that describes a repo or folder which is not the card's checkpoint.

    Raises:
        TargetError: It is none of these, or ambiguous.
    """
    chosen = find_card(card, plugins) if card else None
    if text.startswith((".", "/", "~")):
        if revision:
            raise TargetError("a folder has no revision", remedy="leave out --revision")
        folder = Path(text).expanduser().resolve()
        return Target(_file_name(folder.name), chosen, folder=folder)
    repo, at, suffix = text.partition("@")
    if at and revision and suffix != revision:
        raise TargetError(
            f"{text} and --revision {revision} name two revisions", remedy="give one of them"
        )
    if HUB_REPO.fullmatch(repo):
        if Path(text).is_dir():
            raise TargetError(
                f"{text} is a folder here and could be a hub repo",
                remedy=f"write ./{text} for the folder, or "
                f"{repo}@{revision or suffix or 'main'} for the repo",
            )
        known = chosen or _card_of_repo(repo, plugins)
        pinned = known.revision if known and known.checkpoint == repo else "main"
        name = known.id if known and known.checkpoint == repo else _file_name(repo.split("/")[1])
        return Target(name, known, repo, revision or suffix or pinned)
    if Path(text).is_dir() and not any(text in p.card.models for p in plugins if p.card):
        raise TargetError(f"{text} is no model id", remedy=f"write ./{text} for the folder")
    found = find_card(repo, plugins)
    if chosen and chosen != found:
        raise TargetError(f"{found.id} is not a {chosen.id}", remedy="leave out --card")
    return Target(found.id, found, found.checkpoint, revision or suffix or found.revision)


def find_card(model_id: str, plugins: Sequence[Plugin]) -> ModelCard:
    """Returns the card of an installed model.

    Raises:
        TargetError: No usable plugin has it; the message says which distribution would bring it.
    """
    for plugin in plugins:
        if plugin.is_usable and plugin.card and model_id in plugin.card.models:
            return plugin.card.models[model_id]
    broken = [p for p in plugins if p.state not in ("ok", "disabled")]
    entry = registry.index().get(model_id)
    bringers = [p for p in plugins if entry and p.distribution == entry.distribution]
    for culprit in bringers:
        if culprit.state != "ok":
            raise TargetError(
                f"{model_id} is in {culprit}, which is {culprit.state}: {culprit.reason}",
                remedy="see `edgezoo plugins`",
            )
    if entry and bringers:
        raise TargetError(
            f"{bringers[0]} does not have {model_id} yet",
            remedy=f"run: pip install --upgrade {entry.distribution}",
        )
    if entry:
        raise TargetError(
            f"{model_id} is not installed", remedy=f"run: pip install {entry.distribution}"
        )
    installed = [i for p in plugins if p.is_usable and p.card for i in p.card.models]
    guess = nearest(model_id, [*installed, *registry.index()])
    hint = f" (broken plugins: {listing(p.family for p in broken)})" if broken else ""
    raise TargetError(
        f"no model is called {model_id!r}{hint}",
        remedy=f"did you mean {guess}?" if guess else "see `edgezoo list --available`",
    )


def choose_family(
    target: Target,
    config: Mapping[str, Any] | None,
    plugins: Sequence[Plugin],
    *,
    family: str | None = None,
) -> Plugin:
    """Returns the plugin that converts a checkpoint.

    Args:
        target: What the user named.
        config: Its config.json, if it has one.
        plugins: What is installed.
        family: Chooses between two that claim the architecture.

    Raises:
        TargetError: No family, or more than one, claims the architecture.
    """
    usable = [p for p in plugins if p.is_usable and p.card]
    architectures = _architectures(config)
    if target.card and not family:
        owner = next(p for p in usable if p.card and target.card.id in p.card.models)
        claimed = owner.card.architectures if owner.card else ()
        if architectures and not set(architectures) & set(claimed):
            raise TargetError(
                f"{target} is a {listing(architectures)},"
                f" but {target.card.id} is a {listing(claimed)}",
                remedy="leave out --card, or name another",
            )
        return owner
    if family:
        for plugin in usable:
            if plugin.family == family:
                return plugin
        known = [p.family for p in usable]
        raise TargetError(
            f"no usable family is called {family!r} (installed: {listing(known) or 'none'})",
            remedy="see `edgezoo plugins`",
        )
    if not architectures:
        raise TargetError(
            f"{target} has no config.json that names its architecture",
            remedy="pass --card MODEL to take the config from a card (see `edgezoo list`)",
        )
    claimants = [p for p in usable if p.card and set(architectures) & set(p.card.architectures)]
    if len(claimants) == 1:
        return claimants[0]
    if claimants:
        names = " and ".join(f"{p.family} ({p})" for p in claimants)
        raise TargetError(
            f"{listing(architectures)} is claimed by {names}",
            remedy=f"pass --family {claimants[0].family} or --family {claimants[1].family}",
        )
    known = sorted({a for p in usable if p.card for a in p.card.architectures})
    raise TargetError(
        f"no installed family converts {listing(architectures)}"
        f" (installed: {listing(known) or 'none'})",
        remedy="see `edgezoo list --available`, or write a plugin for it",
    )


def _architectures(config: Mapping[str, Any] | None) -> list[str]:
    value = (config or {}).get("architectures")
    return [str(a) for a in value] if isinstance(value, list) else []


def _card_of_repo(repo: str, plugins: Sequence[Plugin]) -> ModelCard | None:
    for plugin in plugins:
        for card in plugin.card.models.values() if plugin.is_usable and plugin.card else ():
            if card.checkpoint == repo:
                return card
    return None


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
