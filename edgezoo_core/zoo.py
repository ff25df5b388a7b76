"""The order of the stages: from a target to an artifact. Nothing else knows it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core import artifact, bundle, engines, folds, partial, planning
from edgezoo_core import recipe as recipes
from edgezoo_core import tokenizer as tokenizers
from edgezoo_core.adapter_sources import name_adapters, open_adapters
from edgezoo_core.artifact import Artifact
from edgezoo_core.calibrating import passage
from edgezoo_core.calibration import calibrate
from edgezoo_core.checkpoint import SourceFile
from edgezoo_core.compiler import workers
from edgezoo_core.compiler.versions import LIBRARIES
from edgezoo_core.engines import Engine
from edgezoo_core.errors import ArtifactError, EdgezooError
from edgezoo_core.planning import Request
from edgezoo_core.plugins import Plugin
from edgezoo_core.shapes import Shapes
from edgezoo_core.sources import Prospect, Source, fetch, look, settle
from edgezoo_core.stopwatch import Stopwatch, peak_memory_bytes
from edgezoo_core.types import Progress, Recipe, silent

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet

logger = logging.getLogger(__name__)

#: Distributions whose versions shape an artifact.
VERSIONED = ("edgezoo-core", *LIBRARIES)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion gave and cost.

    Attributes:
        artifact: The file and its manifest.
        bundle: The .litertlm, None where there is none.
        seconds: Wall time by stage, in order.
        peak_memory_bytes: Largest memory of the processes by stage: of the workers, added up, and
            of this process (`streaming`).
        from_cache: Which of `trace` and `skeleton` came out of the cache.
    """

    artifact: Artifact
    bundle: Path | None
    seconds: Mapping[str, float]
    peak_memory_bytes: Mapping[str, int]
    from_cache: Sequence[str]


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
    adapters: Sequence[str] = (),
    engine: Engine = "streaming",
    jobs: int | None = None,
    use_cache: bool = True,
    with_bundle: bool = True,
    calibration: Path | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Converts a target to one multi-signature .tflite, its bundle, and a manifest beside them.

    Args:
        text: A model id, `org/name[@revision]`, or a folder.
        recipe: Name of a recipe, or path of a recipe file; the card's default otherwise.
        shapes: Prefill lengths, KV cache, mask; the card's otherwise.
        output: A folder, or a path that ends in `.tflite`.
        force: Whether to replace what stands there.
        revision: Branch, tag or commit of the repo.
        family: Chooses between families that claim one architecture.
        card: Id of the card that describes the files, where they have no config.json.
        adapters: PEFT LoRA adapters to merge, in order: a folder or `org/name[@revision]`, each
            with `=WEIGHT` behind it if it is not to count fully.
        engine: `streaming`, or `litert` for litert-torch's own path.
        jobs: Workers that trace side by side; None takes what cores and memory allow.
        use_cache: Whether traces and skeletons are kept, and used again.
        with_bundle: Whether a .litertlm is made, too, if the source has a tokenizer.
        calibration: A text file for recipes that calibrate, in place of the carried one.
        progress: Told of each stage.

    Raises:
        EdgezooError: Something is in the way; nothing that was there before is lost.
    """
    watch = Stopwatch(progress)
    order = place_order(
        text,
        watch,
        recipe=recipes.resolve(recipe) if recipe else None,
        shapes=shapes,
        output=output,
        force=force,
        revision=revision,
        family=family,
        card=card,
        adapters=adapters,
        engine=engine,
        jobs=jobs,
        use_cache=use_cache,
        with_bundle=with_bundle,
        calibration=calibration,
    )
    return carry_out(order, engine, watch)


def place_order(
    text: str,
    watch: Stopwatch,
    *,
    recipe: Recipe | None,
    output: Path,
    force: bool,
    shapes: Shapes | None,
    revision: str | None,
    family: str | None,
    card: str | None,
    adapters: Sequence[str],
    engine: Engine,
    jobs: int | None,
    use_cache: bool,
    with_bundle: bool,
    calibration: Path | None,
) -> engines.Order:
    """Plans what `convert` is asked for, and fetches the source.

    Raises:
        EdgezooError: Something is in the way.
    """
    prospect = look(text, revision=revision, card=card, progress=watch)
    wanted = planning.request(
        prospect,
        recipe=recipe,
        shapes=shapes,
        output=output,
        force=force,
        family=family,
        adapters=name_adapters(adapters, watch),
        engine=engine,
        jobs=jobs,
        use_cache=use_cache,
        with_bundle=with_bundle,
        calibration=calibration,
    )
    _heed(text, prospect, wanted, watch)
    source = fetch(prospect, settle(prospect, family=family), progress=watch)
    return _order(source, wanted, watch)


def convert_source(
    source: Source,
    *,
    recipe: Recipe,
    shapes: Shapes,
    output: Path,
    adapters: AdapterSet | None = None,
    engine: Engine = "streaming",
    jobs: int | None = None,
    with_bundle: bool = False,
    calibration: Path | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Converts files that were obtained before; otherwise like `convert`."""
    job = source.job(recipe, shapes)
    jobs = jobs or workers.default_jobs()
    order = engines.Order(
        job, source, adapters, output, False, jobs, True, with_bundle, calibration
    )
    return carry_out(order, engine, Stopwatch(progress))


def _heed(text: str, prospect: Prospect, wanted: Request, watch: Stopwatch) -> None:
    """Plans a conversion, logs what the plan warns of, and stops at its errors."""
    # Names are mapped to headers before weights are downloaded. Where these are here, the workers
    # that trace do it anyway, before they trace.
    plan = planning.examine(
        text, prospect, wanted, is_full=prospect.checkpoint is None, progress=watch
    )
    for finding in plan.findings:
        # What the config's reader warns of is told by the conversion itself.
        if finding.level == "warning" and finding.subject != "config":
            logger.warning("%s", finding.message)
    planning.refuse(plan)
    if plan.download_bytes:
        logger.info("%.2f GB to download", plan.download_bytes / 1e9)


def _order(source: Source, wanted: Request, watch: Stopwatch) -> engines.Order:
    """Returns what is asked of the engine, now that the source is here."""
    return engines.Order(
        source.job(wanted.recipe, wanted.shapes),
        source,
        open_adapters(wanted.adapters, source, watch) if wanted.adapters else None,
        wanted.output,
        wanted.force,
        wanted.jobs,
        wanted.use_cache,
        wanted.with_bundle and has_tokenizer(source.checkpoint.folder),
        wanted.calibration,
    )


def has_tokenizer(folder: Path) -> bool:
    """Says whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in tokenizers.FILES)


def pack(
    converted: Artifact, texts: Path, output: Path, progress: Progress = silent
) -> tuple[dict[str, Any], int]:
    """Bundles a .tflite with its tokenizer for LiteRT-LM, in a worker.

    Args:
        converted: The .tflite.
        texts: The folder with the source's tokenizer.
        output: The .litertlm to write; what stands there is replaced.
        progress: Told of each stage.

    Returns:
        What the manifest says of the bundle (`edgezoo_core.bundle.Bundle.record`), and the
        worker's peak memory in bytes.
    """
    request = {"path": str(converted.path), "texts": str(texts), "output": str(output)}
    try:
        (answer,) = workers.run("pack", [request], progress)
    except BaseException:
        # A worker that was killed left what it was writing.
        for path in (output.resolve(), artifact.manifest_path(converted.path).resolve()):
            with suppress(OSError):
                partial.sweep(path)
        raise
    return dict(answer.result), answer.peak_memory_bytes


def carry_out(order: engines.Order, engine: Engine, watch: Stopwatch) -> Conversion:
    """Makes what was ordered.

    Raises:
        EdgezooError: It cannot be made; nothing that was there before is lost.
    """
    # Told before any work, where the length of the cache is known without the model.
    order.path(order.job.shapes.kv_cache_length or order.job.base.kv_cache_length)
    order, peaks = _calibrated(order, watch)
    with ExitStack() as held:
        made = engines.run(order, engine, watch, held)
        peaks |= {**made.peaks, "streaming": peak_memory_bytes()}
        written = artifact.publish(made.output, made.path, _manifest(order, made, engine))
        packed = None
        if order.with_bundle:
            packed = bundle.default_path(made.path)
            try:
                _, peaks["bundle"] = pack(written, order.source.checkpoint.folder, packed, watch)
            except EdgezooError as e:
                raise ArtifactError(
                    f"{made.path} is converted, but not bundled: {e.message}",
                    remedy=f"pass --no-bundle to convert; for the bundle, {e.remedy}",
                ) from e
        written = artifact.read(made.path)  # as it stands there: lists, where we had tuples
    return Conversion(written, packed, watch.finish(), peaks, made.from_cache)


def _calibrated(order: engines.Order, watch: Stopwatch) -> tuple[engines.Order, dict[str, int]]:
    """Returns the order with what calibration gives, and what that took of memory."""
    if not order.job.recipe.calibrates or order.codes:
        return order, {}
    found = calibrate(
        order.job,
        order.source,
        order.adapters,
        order.calibration,
        use_cache=order.use_cache,
        progress=watch,
    )
    peak = found.peak_memory_bytes
    job = replace(order.job, recipe=found.recipe)
    return replace(order, job=job, codes=found.codes), {"calibrating": peak} if peak else {}


def author(source: Source, *, is_compared: bool, progress: Progress = silent) -> Mapping[str, Any]:
    """Builds the re-authored model, loads it, and runs it on sample tokens, in a worker.

    Args:
        source: What to build.
        is_compared: Whether transformers' own model runs on the same tokens.
        progress: Told of each stage.

    Returns:
        `config` (text), `parameters` by part, `logits_shape`, `largest` logit, and `difference`
        (see `edgezoo_core.parity.Difference`, None unless compared).
    """
    job = source.job(recipes.resolve("none"), Shapes())
    request = {"job": job.to_json(), "is_compared": is_compared}
    return workers.run("author", [request], progress)[0].result


def versions(plugin: Plugin) -> dict[str, str]:
    """Returns the versions of the distributions that shape an artifact."""
    found = {name: metadata.version(name) for name in VERSIONED}
    return {**found, plugin.distribution: plugin.version}


def _manifest(order: engines.Order, made: engines.Made, engine: Engine) -> dict[str, Any]:
    return {
        "schema": artifact.SCHEMA,
        **_describe_source(order.source, made.files),
        **({"adapters": order.adapters.record()} if order.adapters else {}),
        "config": {**made.account, "warnings": list(made.warnings)},
        "recipe": {**made.recipe, **_calibration(order)},
        "options": asdict(made.options),
        "signatures": list(made.signatures),
        "artifact": {"file": made.path.name, **made.written},
        "engine": engine,
        "versions": versions(order.source.plugin),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _calibration(order: engines.Order) -> dict[str, Any]:
    recipe = order.job.recipe
    told: dict[str, Any] = {}
    if recipe.is_compensated:
        told["compensated"] = {"text_sha256": passage.digest(passage.read(order.calibration))}
    if recipe.folds:
        told["folds"] = {place: folds.spell(k) for place, k in recipe.folds.items()}
    return told


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
