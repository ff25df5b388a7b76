"""From a manifest back to what was asked: the source, its adapters, the recipe, the shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from edgezoo_core import manifests, sources
from edgezoo_core import recipe as recipes
from edgezoo_core.adapter_sources import name_adapters, open_adapters
from edgezoo_core.artifact import Artifact
from edgezoo_core.errors import ArtifactError, RecipeError, VerificationError
from edgezoo_core.shapes import Shapes, SignatureOptions, complete
from edgezoo_core.sources import Source
from edgezoo_core.types import PARTS, Progress, Recipe

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet


_PLACE = re.compile(r"(?:layers\.(?P<layer>[0-9]{1,4})\.)?(?P<part>\w+)")


@dataclass(frozen=True, slots=True)
class Provenance:
    """What an artifact was made from, here again and unchanged.

    Attributes:
        manifest: What says so.
        source: The checkpoint and its family.
        adapters: What was merged into it.
        recipe: The format of every weight.
        shapes: Of its signatures.
    """

    manifest: Mapping[str, Any]
    source: Source
    adapters: AdapterSet | None
    recipe: Recipe
    shapes: Shapes


def trace(converted: Artifact, progress: Progress) -> Provenance:
    """Obtains what an artifact was made from and compares every file with the manifest.

    Args:
        converted: The artifact, with its manifest.
        progress: Told of each stage.

    Raises:
        ArtifactError: There is no manifest.
        VerificationError: A file of the source or of an adapter is not what it was.
        EdgezooError: The source cannot be had.
    """
    manifest = converted.manifest
    if manifest is None:
        raise ArtifactError(
            f"{converted.path} has no manifest that names its source",
            remedy="name a file that edgezoo converted, its manifest beside it",
        )
    manifests.require(manifest, converted.path, "checkpoint", "model", "options", "recipe")
    recipe = _recipe(manifest["recipe"])
    options = SignatureOptions(**manifest["options"])
    source = _source(manifest, progress)
    adapters = _adapters(manifest.get("adapters", ()), source, progress)
    return Provenance(manifest, source, adapters, recipe, _shapes(source, options))


def _source(manifest: Mapping[str, Any], progress: Progress) -> Source:
    checkpoint, model = manifest["checkpoint"], manifest["model"]
    source = sources.obtain(
        checkpoint["repo"] or checkpoint["folder"],
        revision=checkpoint["commit"],
        family=model["family"],
        card=None if checkpoint["repo"] else model["card_id"],
        progress=progress,
    )
    found = {f.name: f.sha256 for f in source.checkpoint.hash_files(progress)}
    _refuse_changed(source.model.source, checkpoint["files"], found)
    return source


def _adapters(records: Any, source: Source, progress: Progress) -> AdapterSet | None:
    if not records:
        return None
    texts = [f"{record['source']}={record['weight']}" for record in records]
    opened = open_adapters(name_adapters(texts, progress), source, progress)
    for record, adapter in zip(records, opened.adapters, strict=True):
        found = {f.name: f.sha256 for f in adapter.files}
        _refuse_changed(adapter.source, record["files"], found)
    return opened


def _refuse_changed(name: str, recorded: Any, found: Mapping[str, str]) -> None:
    changed = sorted(f["name"] for f in recorded if f["sha256"] != found.get(f["name"]))
    if changed:
        raise VerificationError(
            f"{name} has changed since the conversion: {', '.join(changed)}",
            remedy="convert it again",
        )


def _recipe(record: Mapping[str, Any]) -> Recipe:
    """Returns the recipe that a manifest records weight by weight.

    Raises:
        RecipeError: It records what there is not.
    """
    parts: dict[str, Any] = {}
    layers: dict[int, dict[str, Any]] = {}
    for place, name in record["weights"].items():
        match = _PLACE.fullmatch(place)
        if not match or match["part"] not in PARTS or name not in recipes.FORMATS:
            raise RecipeError(
                f"the manifest records {place} as {name}, which is no weight's format",
                remedy="convert the model again",
            )
        table = layers.setdefault(int(match["layer"]), {}) if match["layer"] else parts
        table[match["part"]] = recipes.FORMATS[name]
    folds = recipes.read_folds(record.get("folds", {}), "the manifest's recipe")
    return Recipe(
        record["name"], None, parts, layers, folds=folds, is_compensated="compensated" in record
    )


def _shapes(source: Source, options: SignatureOptions) -> Shapes:
    """Returns a file's shapes, defaults unnamed, so that its trace is found again."""
    base = source.job(recipes.resolve("none"), Shapes()).base
    base = replace(base, kv_layout=options.kv_layout, mask_as_input=options.mask_as_input)
    if options == complete(Shapes(), base, base.kv_cache_length):
        return Shapes(kv_layout=options.kv_layout, mask_as_input=options.mask_as_input)
    return Shapes(**asdict(options))
