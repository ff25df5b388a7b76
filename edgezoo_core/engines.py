"""The two engines that make a file: edgezoo's own, which streams weights, and litert-torch's."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgezoo_core import artifact, bundle, compiler, hub_cache, partial, slots
from edgezoo_core import checkpoint as checkpoints
from edgezoo_core.checkpoint import SourceFile
from edgezoo_core.compiler import workers
from edgezoo_core.compiler.job import Job
from edgezoo_core.errors import CacheError, ConversionError
from edgezoo_core.shapes import SignatureOptions, complete
from edgezoo_core.sources import Source
from edgezoo_core.stopwatch import Stopwatch

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet
    from edgezoo_core.conversion.codes import Codes

Engine = Literal["streaming", "litert"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """What either engine is asked for; `codes` are weights that calibration has rounded."""

    job: Job
    source: Source
    adapters: AdapterSet | None
    output: Path
    force: bool
    jobs: int
    use_cache: bool
    with_bundle: bool
    calibration: Path | None = None
    codes: Codes | None = None

    def path(self, kv_cache_length: int) -> Path:
        """Returns where the file goes; it must be free unless replacing was asked for.

        Raises:
            ArtifactError: It is not free, or nothing can stand there.
        """
        name, recipe = self.source.target.name, self.job.recipe.name
        path = output_path(self.output, name, recipe, kv_cache_length)
        artifact.refuse_odd(path)
        if not self.force:
            refuse_existing(path, with_bundle=self.with_bundle)
        return path

    def take(self, kv_cache_length: int, held: ExitStack) -> Path:
        """Returns where the file goes, which other processes leave alone until `held` closes."""
        path = self.path(kv_cache_length)
        held.enter_context(partial.reserved(path))
        return self.path(kv_cache_length)  # another process may have been at it until now


def output_path(output: Path, name: str, recipe: str, kv_cache_length: int) -> Path:
    """Returns where a file goes: `output` itself if it ends in .tflite, else a file in it."""
    path = output.expanduser().resolve()
    if path.suffix == ".tflite":
        return path
    return path / artifact.file_name(name, recipe, kv_cache_length)


def refuse_existing(path: Path, *, with_bundle: bool) -> None:
    """Checks that nothing stands where a file and its bundle go.

    Raises:
        ArtifactError: Something does.
    """
    artifact.refuse_existing(path)
    if with_bundle:
        bundle.refuse_existing(bundle.default_path(path))


@dataclass(frozen=True, slots=True)
class Made:
    """What either engine gives: a finished temporary file, where it goes, what to say of it."""

    path: Path
    output: Path
    written: Mapping[str, Any]
    files: Sequence[SourceFile]
    options: SignatureOptions
    signatures: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Any]
    account: Mapping[str, Any]
    warnings: Sequence[str]
    peaks: Mapping[str, int]
    from_cache: Sequence[str]


def run(order: Order, engine: Engine, watch: Stopwatch, held: ExitStack) -> Made:
    """Makes the file, whole or not at all, beside the place where it is to go.

    Args:
        order: What is asked for.
        engine: Which engine.
        watch: Told of each stage.
        held: Keeps the temporary file, and the place for it, until it closes.

    Raises:
        EdgezooError: The model cannot be converted, or the file cannot be written.
    """
    return (_by_litert if engine == "litert" else _by_streaming)(order, watch, held)


def _by_streaming(order: Order, watch: Stopwatch, held: ExitStack) -> Made:
    checkpoint = order.source.checkpoint
    with ExitStack() as stack:
        compiled = _compile(order, stack, watch)
        path = order.take(compiled.options.kv_cache_length, held)
        _warn(compiled.warnings, compiled.growth_bytes, order.job.recipe.name, compiled.options)
        # With numpy, later than a refusal.
        from edgezoo_core.conversion import checking, rescaling, streaming
        from edgezoo_core.conversion.changes import Changes
        from edgezoo_core.conversion.codes import NO_CODES

        factors = rescaling.build(
            compiled.places, order.job.recipe.folds, compiled.shapes, order.job.model.source
        )
        changes = Changes(order.adapters, factors, order.codes or NO_CODES)
        streaming.check_streamable(compiled.program, checkpoint)
        output, _ = held.enter_context(partial.files(path))
        watch("streaming the weights")
        _begin_file(output, compiled)
        files = streaming.fill(
            output,
            compiled.program,
            checkpoint,
            changes,
            threads=order.jobs,
            progress=watch,
        )
        _hold_against_hub(order.source, files)
        watch("checking the file")
        checking.check(output, compiled.program, checkpoint, changes)
        watch("hashing the file")
        written = _written(output)
        watch("syncing the file")
    return Made(
        path,
        output,
        written,
        files,
        compiled.options,
        compiled.signatures,
        compiled.recipe,
        compiled.account,
        compiled.warnings,
        compiled.peak_memory_bytes,
        compiled.from_cache,
    )


def _compile(order: Order, stack: ExitStack, watch: Stopwatch) -> compiler.Compiled:
    """Compiles with the user's cache or, where that cannot be written, without."""
    watch("looking into the cache")

    def compile_with(*, is_kept: bool) -> compiler.Compiled:
        cache = stack.enter_context(compiler.open_cache(is_kept=is_kept))
        source = order.source
        compiled = compiler.compile_job(
            order.job, source.plugin, source.checkpoint, cache, jobs=order.jobs, progress=watch
        )
        stack.enter_context(compiled.head)
        return compiled

    if order.use_cache:
        try:
            return compile_with(is_kept=True)
        except CacheError as e:
            logger.warning("%s; converting without the cache", e.message)
    try:
        return compile_with(is_kept=False)
    except CacheError as e:
        raise ConversionError(
            f"what is in the making cannot be kept in {tempfile.gettempdir()}: {e.message}",
            remedy="free some space there, or set TMPDIR to a folder that can be written",
        ) from e


def _begin_file(output: Path, compiled: compiler.Compiled) -> None:
    with output.open("wb") as file:
        shutil.copyfileobj(compiled.head, file, 1 << 22)
        file.truncate(compiled.program.size_bytes)


def _by_litert(order: Order, watch: Stopwatch, held: ExitStack) -> Made:
    if order.adapters:
        raise ConversionError(
            "litert-torch's path merges no adapters", remedy="leave out --engine litert"
        )
    job = order.job.to_json()
    (examined,) = workers.run("examine", [{"job": job}], watch)
    context_length = examined.result["context_length"]
    options = complete(order.job.shapes, order.job.base, context_length)
    path = order.take(options.kv_cache_length, held)
    output, scratch = held.enter_context(partial.files(path))
    request = {"job": job, "output": str(output), "scratch": str(scratch)}
    (answer,) = workers.run("litert", [request], watch)
    result = answer.result
    files = order.source.checkpoint.hash_files(watch)
    _hold_against_hub(order.source, files)
    watch("hashing the file")
    written = _written(output)
    _warn(result["warnings"], result["growth_bytes"], order.job.recipe.name, options)
    return Made(
        path,
        output,
        written,
        files,
        options,
        result["signatures"],
        result["recipe"],
        result["account"],
        result["warnings"],
        {"litert": answer.peak_memory_bytes},
        (),
    )


def _hold_against_hub(source: Source, files: Sequence[SourceFile]) -> None:
    if source.commit:
        hub_cache.refuse_damaged(source.checkpoint.folder, files)


def _written(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": checkpoints.sha256(path)}


def _warn(
    warnings: Sequence[str], growth_bytes: int, recipe: str, options: SignatureOptions
) -> None:
    for warning in warnings:
        logger.warning("%s", warning)
    if growth_bytes:
        logger.warning(
            "embedding and lm_head are one tied weight, but recipe %s gives them two formats: the"
            " file carries both, %.1f MB more",
            recipe,
            growth_bytes / 1e6,
        )
    lengths = {f"--prefill {n}": n for n in options.prefill_lengths}
    if options.mask_as_input:
        lengths[f"--kv-cache {options.kv_cache_length}"] = options.kv_cache_length
    for option, length in lengths.items():
        if slots.used(length) != length:
            logger.warning(
                "%s is a prime number, of which LiteRT-LM makes %d; choose another length",
                option,
                slots.used(length),
            )
