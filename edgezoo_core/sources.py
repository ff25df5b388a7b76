"""From what the user names to the local files of a model, and the family that converts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core import checkpoint as checkpoints
from edgezoo_core import hub, hub_cache, plugins, remote, targets
from edgezoo_core import recipe as recipes
from edgezoo_core.cards import ModelCard
from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.compiler import workers
from edgezoo_core.compiler.job import Job
from edgezoo_core.errors import CheckpointError, TargetError
from edgezoo_core.hub_errors import GatedError
from edgezoo_core.hub_repo import RemoteRepo
from edgezoo_core.plugins import Plugin
from edgezoo_core.shapes import Shapes, SignatureOptions
from edgezoo_core.targets import Target
from edgezoo_core.types import Model, Progress, Recipe, silent

if TYPE_CHECKING:
    from edgezoo_core.hooks import LoadedPlugin
    from edgezoo_core.model import AuthoredModel


@dataclass(frozen=True, slots=True)
class Source:
    """A target whose files are here and whose family is known.

    Attributes:
        target: What the user named.
        plugin: The family's plugin; not imported.
        model: The first argument of every hook.
        checkpoint: The files.
        config: config.json, or the card's in its place.
        commit: The hub's commit, None for a folder.
    """

    target: Target
    plugin: Plugin
    model: Model
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    commit: str | None

    def load(self) -> LoadedPlugin:
        """Imports the plugin."""
        return plugins.load(self.plugin)

    def author(self) -> AuthoredModel:
        """Builds the module in this process and maps its weights; imports torch.

        Raises:
            EdgezooError: The config or the tensors do not fit; see `edgezoo_core.model.build`.
        """
        from edgezoo_core import model

        return model.build(self.load(), self.model, self.checkpoint, self.config)

    def job(self, recipe: Recipe, shapes: Shapes) -> Job:
        """Returns what a worker needs to know."""
        folder = self.checkpoint.folder
        return job(self.model, self.config, folder, self.target.card, recipe, shapes)


def job(
    model: Model,
    config: Mapping[str, Any],
    folder: Path,
    card: ModelCard | None,
    recipe: Recipe,
    shapes: Shapes,
) -> Job:
    """Returns what a worker needs to know."""
    base = card.signatures if card else SignatureOptions()
    # In one form, so that naming a default does not make another trace of it.
    base = replace(
        base,
        kv_layout=shapes.kv_layout or base.kv_layout,
        mask_as_input=base.mask_as_input if shapes.mask_as_input is None else shapes.mask_as_input,
    )
    lengths = shapes.prefill_lengths
    shapes = Shapes(tuple(sorted(set(lengths))) if lengths else None, shapes.kv_cache_length)
    return Job(model, config, folder, base, shapes, recipe)


@dataclass(frozen=True, slots=True)
class Prospect:
    """A target as far as it can be known before any weight is downloaded.

    Attributes:
        target: What the user named.
        commit: The hub's commit, None for a folder.
        repo: What the hub says; None for a folder, or where the hub cannot be reached.
        checkpoint: The files, if all of them are here already.
        fields: config.json, None where there is none.
        refusal: Why the config could not be read though the repo is there: it is gated.
    """

    target: Target
    commit: str | None
    repo: RemoteRepo | None
    checkpoint: Checkpoint | None
    fields: Mapping[str, Any] | None
    refusal: CheckpointError | None = None

    @property
    def name(self) -> str:
        """`org/name@commit`, or the folder's path."""
        return f"{self.target.repo}@{self.commit}" if self.commit else str(self.target.folder)

    def open(self, *, progress: Progress = silent) -> Checkpoint:
        """Opens the checkpoint: its headers, which may be afar.

        Raises:
            CheckpointError: The weights are missing or damaged.
            edgezoo_core.remote.UnreadableAfarError: Their headers cannot be read from here.
        """
        if self.checkpoint is not None:
            return self.checkpoint
        if self.repo is None:
            raise hub_cache.not_cached(str(self.target.repo), self.target.revision)
        return remote.open_headers(self.repo, self.fields, progress=progress)


@dataclass(frozen=True, slots=True)
class Settled:
    """Whose model a prospect is: the family's plugin, what hooks are told, and the config."""

    plugin: Plugin
    model: Model
    config: Mapping[str, Any]


def look(
    text: str, *, revision: str | None = None, card: str | None = None, progress: Progress = silent
) -> Prospect:
    """Looks at a TARGET; of a repo, config.json alone is fetched.

    Args:
        text: A model id, `org/name[@revision]`, or a folder (begins with `.`, `/` or `~`).
        revision: Branch, tag or commit of the repo.
        card: Id of the card that describes the files, where they have no config.json.
        progress: Told of each stage.

    Raises:
        EdgezooError: The target or its config cannot be had.
    """
    target = targets.parse(text, plugins.discover(), revision=revision, card=card)
    if target.folder:
        checkpoint = checkpoints.open_folder(target.folder)
        return Prospect(target, None, None, checkpoint, checkpoint.config)
    name = str(target.repo)
    repo = remote.look(name, target.revision, progress=progress)
    snapshot = hub_cache.cached(name, repo.commit if repo else target.revision)
    if snapshot:
        checkpoint = checkpoints.open_folder(snapshot.folder, f"{name}@{snapshot.commit}")
        return Prospect(target, snapshot.commit, repo, checkpoint, checkpoint.config)
    if repo is None:
        raise hub_cache.not_cached(name, target.revision)
    try:
        fields = remote.read_config(repo, progress=progress)
    except GatedError as e:
        return Prospect(target, repo.commit, repo, None, None, e)
    return Prospect(target, repo.commit, repo, None, fields)


def settle(prospect: Prospect, *, family: str | None = None) -> Settled:
    """Finds the family of a prospect and the config that it is built by.

    Args:
        prospect: What is known of the target.
        family: Chooses between families that claim one architecture.

    Raises:
        CheckpointError: The repo is gated, and this user has no access.
        TargetError: No family converts it, or there is no config.
    """
    target = prospect.target
    if prospect.refusal:
        raise prospect.refusal
    plugin = targets.choose_family(target, prospect.fields, plugins.discover(), family=family)
    config = prospect.fields or (target.card.config if target.card else None)
    if config is None:
        raise TargetError(
            f"{target} has no config.json, and no card stands in for it",
            remedy="add config.json, or pass --card MODEL (see `edgezoo list`)",
        )
    card_id = target.card.id if target.card and _owns(plugin, target.card.id) else None
    return Settled(plugin, Model(plugin.family, card_id, prospect.name), config)


def fetch(prospect: Prospect, settled: Settled, *, progress: Progress = silent) -> Source:
    """Brings the files of a prospect that are not here yet, and opens them.

    Raises:
        CheckpointError: They cannot be had, or are damaged.
    """
    if prospect.repo is None:
        checkpoint = prospect.open()
    else:
        # Also where the weights are here: the cache notes the commit, and gets texts that it lacks.
        bring = hub.fetch_texts if prospect.checkpoint else hub.fetch
        snapshot = bring(prospect.repo, progress=progress)
        checkpoint = checkpoints.open_folder(snapshot.folder, prospect.name)
    return Source(
        prospect.target,
        settled.plugin,
        settled.model,
        checkpoint,
        settled.config,
        prospect.commit,
    )


def obtain(
    text: str,
    *,
    revision: str | None = None,
    family: str | None = None,
    card: str | None = None,
    progress: Progress = silent,
) -> Source:
    """Turns a TARGET into local files and the plugin that converts them.

    Args:
        text: A model id, `org/name[@revision]`, or a folder (begins with `.`, `/` or `~`).
        revision: Branch, tag or commit of the repo.
        family: Chooses between families that claim one architecture.
        card: Id of the card that describes the files, where they have no config.json.
        progress: Told of each stage.

    Raises:
        EdgezooError: The target, its files, or its plugin will not do.
    """
    prospect = look(text, revision=revision, card=card, progress=progress)
    settled = settle(prospect, family=family)
    if prospect.checkpoint is None:
        # What the config rules out is told before any weight is downloaded.
        context_length(settled, progress)
    return fetch(prospect, settled, progress=progress)


def context_length(settled: Settled, progress: Progress = silent) -> int:
    """Authors the module in a worker, and returns the model's context in tokens.

    Raises:
        EdgezooError: The config says something that the family does not implement.
    """
    progress("reading the config")
    asked = job(settled.model, settled.config, Path(), None, recipes.resolve("none"), Shapes())
    (answer,) = workers.run("examine", [{"job": asked.to_json()}], progress)
    return int(answer.result["context_length"])


def _owns(plugin: Plugin, model_id: str) -> bool:
    return plugin.card is not None and model_id in plugin.card.models
