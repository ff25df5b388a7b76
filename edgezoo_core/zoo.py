"""The order of the stages: from a target to an artifact. Nothing else knows it."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from edgezoo_core import artifact, conversion, hub, model, plugins, targets
from edgezoo_core import checkpoint as checkpoints
from edgezoo_core import recipe as recipes
from edgezoo_core.artifact import Artifact
from edgezoo_core.cards import HUB_REPO
from edgezoo_core.checkpoint import Checkpoint, SourceFile
from edgezoo_core.errors import ArtifactError, ConversionError, TargetError
from edgezoo_core.hooks import LoadedPlugin
from edgezoo_core.model import AuthoredModel
from edgezoo_core.plugins import Plugin
from edgezoo_core.shapes import Shapes, SignatureOptions
from edgezoo_core.targets import Target
from edgezoo_core.types import (
    Model,
    Progress,
    QuantPlan,
    Signature,
    SignatureSpec,
    silent,
)

logger = logging.getLogger(__name__)

#: Distributions whose versions shape an artifact.
VERSIONED = (
    "edgezoo-core",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "litert-converter",
    "litert-torch",
    "torch",
    "transformers",
)


@dataclass(frozen=True, slots=True)
class Source:
    """A target whose files are here and whose family is known.

    Attributes:
        target: What the user named.
        plugin: The family's hooks.
        model: The first argument of every hook.
        checkpoint: The files.
        config: config.json, or the card's in its place.
        commit: The hub's commit, None for a folder.
    """

    target: Target
    plugin: LoadedPlugin
    model: Model
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    commit: str | None

    def author(self) -> AuthoredModel:
        """Builds the module and maps its weights; see `edgezoo_core.model.build`."""
        return model.build(self.plugin, self.model, self.checkpoint, self.config)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion gave and cost.

    Attributes:
        artifact: The file and its manifest.
        seconds: Wall time by stage, in order.
        peak_memory_bytes: Largest resident size of this process so far.
    """

    artifact: Artifact
    seconds: Mapping[str, float]
    peak_memory_bytes: int


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
    plugin = plugins.load(targets.choose_family(target, fields, found, family=family))
    config = fields or (target.card.config if target.card else None)
    if config is None:
        raise TargetError(
            f"{target} has no config.json, and no card stands in for it",
            remedy="add config.json, or pass --card MODEL (see `edgezoo list`)",
        )
    card_id = target.card.id if target.card and _owns(plugin.plugin, target.card.id) else None
    name = str(target.folder) if target.folder else f"{target.repo}@{commit}"
    described = Model(plugin.plugin.family, card_id, name)
    if commit:
        model.author(plugin, described, config)
        snapshot = hub.pull(str(target.repo), commit, progress=progress)
        checkpoint = checkpoints.open_folder(snapshot.folder, name)
    return Source(target, plugin, described, checkpoint, config, commit)


def convert(
    text: str,
    *,
    recipe: str | None = None,
    shapes: Shapes | None = None,
    output: Path = Path(),
    force: bool = False,
    revision: str | None = None,
    family: str | None = None,
    card: str | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Converts a target to one multi-signature .tflite with a manifest beside it.

    Args:
        text: A model id, `org/name[@revision]`, or a folder.
        recipe: Name of a recipe, or path of a recipe file; the card's default otherwise.
        shapes: Prefill lengths, KV cache, mask; the card's otherwise.
        output: A folder, or a path that ends in `.tflite`.
        force: Whether to replace what stands there.
        revision: Branch, tag or commit of the repo.
        family: Chooses between families that claim one architecture.
        card: Id of the card that describes the files, where they have no config.json.
        progress: Told of each stage.

    Raises:
        EdgezooError: Something is in the way; nothing that was there before is lost.
    """
    watch = _Stopwatch(progress)
    asked = recipes.resolve(recipe) if recipe else None
    source = obtain(text, revision=revision, family=family, card=card, progress=watch)
    default = source.target.card.default_recipe if source.target.card else recipes.DEFAULT
    chosen = asked or recipes.resolve(default)

    watch("building the model")
    authored = source.author()
    options = choose_shapes(shapes or Shapes(), source, authored)
    path = _output_path(output, source.target.name, chosen.name, options)
    if not force:
        artifact.refuse_existing(path)
    model.prepare(authored, options)
    plan = source.plugin.quant_recipe(source.model, authored.module, chosen)
    signatures = source.plugin.signatures(source.model, authored.module, options)
    _warn(plan, options)

    files = source.checkpoint.hash_files(watch)
    with artifact.writing(path) as (partial, scratch):
        specs = conversion.convert(
            authored, signatures, plan, partial, scratch=scratch, progress=watch
        )
        _check_signatures(specs, signatures)
        watch("hashing the artifact")
        written = {"size_bytes": partial.stat().st_size, "sha256": checkpoints.sha256(partial)}
    manifest = {
        "schema": artifact.SCHEMA,
        **_describe_source(source, files),
        "config": {**authored.config_account, "warnings": authored.warnings},
        "recipe": _describe(plan),
        "options": asdict(options),
        "signatures": [asdict(s) for s in specs],
        "artifact": {"file": path.name, **written},
        "versions": versions(source.plugin.plugin),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Conversion(artifact.write_manifest(path, manifest), watch.finish(), peak_memory_bytes())


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


def choose_shapes(shapes: Shapes, source: Source, authored: AuthoredModel) -> SignatureOptions:
    """Completes the shapes that the user named; defaults never exceed the model's context."""
    card = source.target.card
    base = card.signatures if card else SignatureOptions()
    kv_cache_length = shapes.kv_cache_length or min(base.kv_cache_length, authored.context_length)
    prefill = shapes.prefill_lengths or [n for n in base.prefill_lengths if n < kv_cache_length]
    return SignatureOptions(
        prefill_lengths=tuple(prefill),
        kv_cache_length=kv_cache_length,
        kv_layout=shapes.kv_layout or base.kv_layout,
        mask_as_input=base.mask_as_input if shapes.mask_as_input is None else shapes.mask_as_input,
    )


def versions(plugin: Plugin) -> dict[str, str]:
    """Returns the versions of the distributions that shape an artifact."""
    found = {name: metadata.version(name) for name in VERSIONED}
    return {**found, plugin.distribution: plugin.version}


def peak_memory_bytes() -> int:
    """Returns the largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _owns(plugin: Plugin, model_id: str) -> bool:
    return plugin.card is not None and model_id in plugin.card.models


def _output_path(output: Path, name: str, recipe: str, options: SignatureOptions) -> Path:
    output = output.expanduser()
    if output.suffix == ".tflite":
        return output.resolve()
    return output.resolve() / artifact.file_name(name, recipe, options.kv_cache_length)


def _warn(plan: QuantPlan, options: SignatureOptions) -> None:
    growth = recipes.growth_bytes(plan)
    if growth:
        logger.warning(
            "embedding and lm_head are one tied weight, but recipe %s gives them two formats: the"
            " file carries both, %.1f MB more",
            plan.name,
            growth / 1e6,
        )
    if options.kv_layout == "default" and not options.mask_as_input:
        logger.warning(
            "LiteRT-LM misreads the capacity of a default-layout KV cache without a mask input;"
            " choose --kv-layout transposed or --mask-as-input for it"
        )


def _check_signatures(specs: Sequence[SignatureSpec], wanted: Sequence[Signature]) -> None:
    found, expected = sorted(s.name for s in specs), sorted(s.name for s in wanted)
    if found != expected:
        raise ConversionError(
            f"the file has signatures {found}, expected {expected}", remedy="report it"
        )


def _describe_source(source: Source, files: Sequence[SourceFile]) -> dict[str, Any]:
    return {
        "model": asdict(source.model),
        "checkpoint": {
            "repo": source.target.repo,
            "folder": str(source.target.folder) if source.target.folder else None,
            "commit": source.commit,
            "files": [asdict(f) for f in files],
        },
    }


def _describe(plan: QuantPlan) -> dict[str, Any]:
    def spell(rule: Any) -> str:
        place = rule.part if rule.layer is None else f"layers.{rule.layer}.{rule.part}"
        return str(place)

    return {
        "name": plan.name,
        "weights": {spell(r): r.format.name if r.format else "none" for r in plan.rules},
    }


class _Stopwatch:
    """Times the stages that pass through it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._stage: str | None = None
        self._began = time.perf_counter()

    def __call__(self, stage: str) -> None:
        self.finish()
        self._stage, self._began = stage, time.perf_counter()
        self._progress(stage)

    def finish(self) -> dict[str, float]:
        if self._stage:
            elapsed = time.perf_counter() - self._began
            self._seconds[self._stage] = self._seconds.get(self._stage, 0) + elapsed
            self._stage = None
        return self._seconds
