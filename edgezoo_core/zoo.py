"""The order of the stages: from a target to an artifact. Nothing else knows it."""

from __future__ import annotations

import importlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgezoo_core import artifact, compiler, hub
from edgezoo_core import checkpoint as checkpoints
from edgezoo_core import recipe as recipes
from edgezoo_core.artifact import Artifact
from edgezoo_core.checkpoint import SourceFile
from edgezoo_core.compiler import workers
from edgezoo_core.compiler.job import Job
from edgezoo_core.errors import CacheError, ConversionError
from edgezoo_core.plugins import Plugin
from edgezoo_core.shapes import Shapes, SignatureOptions
from edgezoo_core.sources import Source, obtain, open_adapters
from edgezoo_core.stopwatch import Stopwatch, peak_memory_bytes
from edgezoo_core.types import Progress, silent

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet

Engine = Literal["streaming", "litert"]

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
class Conversion:
    """What a conversion gave and cost.

    Attributes:
        artifact: The file and its manifest.
        seconds: Wall time by stage, in order.
        peak_memory_bytes: Largest memory of the processes by stage: of the workers, added up, and
            of this process (`streaming`).
        from_cache: Which of `trace` and `skeleton` came out of the cache.
    """

    artifact: Artifact
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
        adapters: PEFT LoRA adapters to merge, in order: a folder or `org/name[@revision]`, each
            with `=WEIGHT` behind it if it is not to count fully.
        engine: `streaming`, or `litert` for litert-torch's own path.
        jobs: Workers that trace side by side; None takes what cores and memory allow.
        use_cache: Whether traces and skeletons are kept, and used again.
        progress: Told of each stage.

    Raises:
        EdgezooError: Something is in the way; nothing that was there before is lost.
    """
    watch = Stopwatch(progress)
    asked = recipes.resolve(recipe) if recipe else None
    source = obtain(text, revision=revision, family=family, card=card, progress=watch)
    card_default = source.target.card.default_recipe if source.target.card else recipes.DEFAULT
    job = source.job(asked or recipes.resolve(card_default), shapes or Shapes())
    guess = job.shapes.kv_cache_length or job.base.kv_cache_length
    if not force:
        artifact.refuse_existing(_output_path(output, source.target.name, job.recipe.name, guess))
    bound = open_adapters(adapters, source, watch) if adapters else None
    make = _by_litert if engine == "litert" else _by_streaming
    made = make(job, source, bound, output, force, jobs, use_cache, watch)
    manifest = {
        "schema": artifact.SCHEMA,
        **_describe_source(source, made.files),
        **({"adapters": bound.record()} if bound else {}),
        "config": {**made.account, "warnings": list(made.warnings)},
        "recipe": made.recipe,
        "options": asdict(made.options),
        "signatures": list(made.signatures),
        "artifact": {"file": made.path.name, **made.written},
        "engine": engine,
        "versions": versions(source.plugin),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    peaks = {**made.peaks, "streaming": peak_memory_bytes()}
    return Conversion(
        artifact.write_manifest(made.path, manifest), watch.finish(), peaks, made.from_cache
    )


@dataclass(frozen=True, slots=True)
class _Made:
    """What either engine gives."""

    path: Path
    written: Mapping[str, Any]
    files: Sequence[SourceFile]
    options: SignatureOptions
    signatures: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Any]
    account: Mapping[str, Any]
    warnings: Sequence[str]
    peaks: Mapping[str, int]
    from_cache: Sequence[str]


def _by_streaming(
    job: Job,
    source: Source,
    adapters: AdapterSet | None,
    output: Path,
    force: bool,
    jobs: int | None,
    use_cache: bool,
    watch: Stopwatch,
) -> _Made:
    count = jobs or workers.default_jobs()
    with ExitStack() as stack:
        compiled = _compile(job, source, stack, count, use_cache, watch)
        path = _output_path(
            output, source.target.name, job.recipe.name, compiled.options.kv_cache_length
        )
        if not force:
            artifact.refuse_existing(path)
        _warn(compiled, source)
        streaming = importlib.import_module("edgezoo_core.conversion.streaming")
        checking = importlib.import_module("edgezoo_core.conversion.checking")
        streaming.check_streamable(compiled.program, source.checkpoint)
        with artifact.writing(path) as (partial, _):
            watch("streaming the weights")
            _begin_file(partial, compiled)
            files = streaming.fill(
                partial,
                compiled.program,
                source.checkpoint,
                adapters=adapters,
                threads=count,
                progress=watch,
            )
            if source.commit:
                hub.refuse_damaged(source.checkpoint.folder, files)
            watch("checking the file")
            checking.check(partial, compiled.program, source.checkpoint, adapters)
            watch("hashing the file")
            written = _written(partial)
            watch("syncing the file")
    return _Made(
        path, written, files, compiled.options, compiled.signatures, compiled.recipe,
        compiled.account, compiled.warnings, compiled.peak_memory_bytes, compiled.from_cache,
    )  # fmt: skip


def _compile(
    job: Job, source: Source, stack: ExitStack, jobs: int, use_cache: bool, watch: Stopwatch
) -> compiler.Compiled:
    """Compiles with the user's cache or, where that cannot be written, without."""
    watch("looking into the cache")
    for is_used in (True, False) if use_cache else (False,):
        cache = stack.enter_context(compiler.open_cache(is_used=is_used))
        try:
            compiled = compiler.compile_job(
                job, source.plugin, source.checkpoint, cache, jobs=jobs, progress=watch
            )
            stack.enter_context(compiled.head)
        except CacheError as e:
            if not is_used:
                raise
            logger.warning("%s; converting without the cache", e.message)
        else:
            return compiled
    raise AssertionError


def _begin_file(partial: Path, compiled: compiler.Compiled) -> None:
    with partial.open("wb") as file:
        shutil.copyfileobj(compiled.head, file, 1 << 22)
        file.truncate(compiled.program.size_bytes)


def _by_litert(
    job: Job,
    source: Source,
    adapters: AdapterSet | None,
    output: Path,
    force: bool,
    jobs: int | None,
    use_cache: bool,
    watch: Stopwatch,
) -> _Made:
    if adapters:
        raise ConversionError(
            "litert-torch's path merges no adapters", remedy="leave out --engine litert"
        )
    guess = job.shapes.kv_cache_length or job.base.kv_cache_length
    first = _output_path(output, source.target.name, job.recipe.name, guess)
    with artifact.writing(first) as (partial, scratch):
        request = {"job": job.to_json(), "output": str(partial), "scratch": str(scratch)}
        (answer,) = workers.run("litert", [request], watch)
        result = answer.result
        files = source.checkpoint.hash_files(watch)
        if source.commit:
            hub.refuse_damaged(source.checkpoint.folder, files)
        watch("hashing the file")
        written = _written(partial)
    options = SignatureOptions(
        **{**result["options"], "prefill_lengths": tuple(result["options"]["prefill_lengths"])}
    )
    return _Made(
        first, written, files, options, result["signatures"], result["recipe"], result["account"],
        result["warnings"], {"litert": answer.peak_memory_bytes}, (),
    )  # fmt: skip


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


def _output_path(output: Path, name: str, recipe: str, kv_cache_length: int) -> Path:
    output = output.expanduser()
    if output.suffix == ".tflite":
        return output.resolve()
    return output.resolve() / artifact.file_name(name, recipe, kv_cache_length)


def _written(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": checkpoints.sha256(path)}


def _warn(compiled: compiler.Compiled, source: Source) -> None:
    for warning in compiled.warnings:
        logger.warning("%s", warning)
    if compiled.growth_bytes:
        logger.warning(
            "embedding and lm_head are one tied weight, but recipe %s gives them two formats: the"
            " file carries both, %.1f MB more",
            compiled.recipe["name"],
            compiled.growth_bytes / 1e6,
        )
    if compiled.options.kv_layout == "default" and not compiled.options.mask_as_input:
        logger.warning(
            "LiteRT-LM misreads the capacity of a default-layout KV cache without a mask input;"
            " choose --kv-layout transposed or --mask-as-input for it"
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
