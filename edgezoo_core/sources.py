"""From what the user names to local files: a model with its family, adapters, a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core import checkpoint as checkpoints
from edgezoo_core import hub, plugins, targets, tokenizer
from edgezoo_core import recipe as recipes
from edgezoo_core.artifact import Artifact
from edgezoo_core.cards import HUB_REPO
from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.compiler import workers
from edgezoo_core.compiler.job import Job
from edgezoo_core.errors import ArtifactError, TargetError
from edgezoo_core.plugins import Plugin
from edgezoo_core.shapes import Shapes, SignatureOptions
from edgezoo_core.targets import Target
from edgezoo_core.types import Model, Progress, Recipe, silent

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet
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
        card = self.target.card
        base = card.signatures if card else SignatureOptions()
        # In one form, so that naming a default does not make another trace of it.
        base = replace(
            base,
            kv_layout=shapes.kv_layout or base.kv_layout,
            mask_as_input=base.mask_as_input
            if shapes.mask_as_input is None
            else shapes.mask_as_input,
        )
        lengths = shapes.prefill_lengths
        shapes = Shapes(tuple(sorted(set(lengths))) if lengths else None, shapes.kv_cache_length)
        return Job(self.model, self.config, self.checkpoint.folder, base, shapes, recipe)


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
    found = plugins.discover()
    target = targets.parse(text, found, revision=revision, card=card)
    commit = None
    if target.folder:
        checkpoint = checkpoints.open_folder(target.folder)
        fields = checkpoint.config
    else:
        # The config first: what it rules out is told before any weight is downloaded.
        texts = hub.pull_texts(str(target.repo), target.revision, progress=progress)
        commit = texts.commit
        fields = checkpoints.read_config(texts.folder)
    plugin = targets.choose_family(target, fields, found, family=family)
    config = fields or (target.card.config if target.card else None)
    if config is None:
        raise TargetError(
            f"{target} has no config.json, and no card stands in for it",
            remedy="add config.json, or pass --card MODEL (see `edgezoo list`)",
        )
    card_id = target.card.id if target.card and _owns(plugin, target.card.id) else None
    name = str(target.folder) if target.folder else f"{target.repo}@{commit}"
    described = Model(plugin.family, card_id, name)
    if commit:
        snapshot = hub.cached(str(target.repo), commit)
        if snapshot is None:
            _examine(described, config, texts.folder, progress)
            snapshot = hub.pull(str(target.repo), commit, progress=progress)
        checkpoint = checkpoints.open_folder(snapshot.folder, name)
    return Source(target, plugin, described, checkpoint, config, commit)


def open_adapters(texts: Sequence[str], source: Source, progress: Progress) -> AdapterSet:
    """Opens adapters and finds the tensor of the checkpoint for each of their parts.

    Args:
        texts: A folder or `org/name[@revision]` each, with `=WEIGHT` behind it if not 1.
        source: What they are merged into.
        progress: Told of each stage.

    Raises:
        TargetError: A weight is no number, or a folder is not there.
        CheckpointError: An adapter cannot be obtained, read, merged exactly, or does not fit.
    """
    progress("reading the adapters")
    from edgezoo_core import adapter_merging

    parts = []
    for text in texts:
        name, _, weight = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            factor = float(weight)
        except ValueError as e:
            raise TargetError(
                f"--adapter {text}: {weight!r} is no number", remedy="write FOLDER=0.5, say"
            ) from e
        folder = Path(name).expanduser()
        described = str(folder)
        if not folder.is_dir():
            if name.startswith((".", "/", "~")):
                raise TargetError(f"--adapter {name}: no such folder", remedy="check the path")
            repo, _, revision = name.partition("@")
            snapshot = hub.pull_adapter(repo, revision or "main", progress=progress)
            folder, described = snapshot.folder, f"{repo}@{snapshot.commit}"
        parts.append((str(folder), factor, described))
    return adapter_merging.open_adapters(
        parts, source.checkpoint, source.config.get("tie_word_embeddings")
    )


def text_folder(converted: Artifact, progress: Progress = silent) -> Path:
    """Returns the folder with the tokenizer of an artifact's source.

    Raises:
        ArtifactError: There is no manifest, or the folder is gone.
        CheckpointError: The hub's copy cannot be had.
    """
    if converted.manifest is None:
        raise ArtifactError(
            f"{converted.path} has no manifest that names its source",
            remedy="pass --tokenizer with a folder or a hub repo",
        )
    origin = converted.manifest["checkpoint"]
    if origin["repo"]:
        return hub.pull_texts(origin["repo"], origin["commit"], progress=progress).folder
    folder = Path(origin["folder"])
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder}, from which {converted.path.name} was made, is gone",
            remedy="pass --tokenizer with a folder or a hub repo",
        )
    return folder


def known_texts(converted: Artifact, progress: Progress = silent) -> Path | None:
    """Returns the folder with the texts of an artifact's source; None if it holds no tokenizer.

    Raises:
        ArtifactError: There is no manifest, or the folder is gone.
        CheckpointError: The hub's copy cannot be had.
    """
    folder = text_folder(converted, progress)
    return folder if any((folder / name).is_file() for name in tokenizer.FILES) else None


def tokenizer_folder(text: str, progress: Progress = silent) -> Path:
    """Returns the folder of a tokenizer that the user named: a folder, or a hub repo.

    Raises:
        TargetError: It is neither.
        CheckpointError: The hub's copy cannot be had.
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    repo, _, revision = text.partition("@")
    if not HUB_REPO.fullmatch(repo):
        raise TargetError(
            f"{text} is neither a folder nor a hub repo", remedy="write a path, or org/name"
        )
    return hub.pull_texts(repo, revision or "main", progress=progress).folder


def _examine(described: Model, config: Mapping[str, Any], folder: Path, progress: Progress) -> None:
    """Says what a config rules out, before any weight is downloaded."""
    progress("reading the config")
    job = Job(described, config, folder, SignatureOptions(), Shapes(), recipes.resolve("none"))
    workers.run("examine", [{"job": job.to_json()}], progress)


def _owns(plugin: Plugin, model_id: str) -> bool:
    return plugin.card is not None and model_id in plugin.card.models
