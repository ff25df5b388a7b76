"""A prospect is held against a request: figures, and a finding for all that is in the way."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgezoo_core import engines, remote, sources
from edgezoo_core.adapter_sources import NamedAdapter
from edgezoo_core.cache import default_root
from edgezoo_core.checkpoint import PYTORCH_SUFFIXES, Checkpoint
from edgezoo_core.compiler.job import Job
from edgezoo_core.engines import Engine
from edgezoo_core.errors import CacheError, CheckpointError, EdgezooError
from edgezoo_core.planning import costs, facts, inputs, limits, resources, sizes
from edgezoo_core.planning.costs import Speed, Work
from edgezoo_core.planning.facts import Facts
from edgezoo_core.planning.result import Finding, Plan
from edgezoo_core.shapes import Shapes, SignatureOptions, check_context, complete
from edgezoo_core.sources import Prospect, Settled
from edgezoo_core.types import Progress, Recipe, silent

#: A context for shapes where none is known.
_LONG = 1 << 30
_ORDER = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Request:
    """What a conversion is asked for; see `edgezoo_core.zoo.convert`."""

    recipe: Recipe
    shapes: Shapes
    output: Path
    force: bool
    family: str | None
    adapters: tuple[NamedAdapter, ...]
    engine: Engine
    jobs: int
    use_cache: bool
    with_bundle: bool
    calibration: Path | None


def examine(
    text: str,
    prospect: Prospect,
    request: Request,
    *,
    is_full: bool,
    speed: Speed | None = None,
    progress: Progress = silent,
) -> Plan:
    """Plans a conversion.

    Args:
        text: What the user named.
        prospect: What is known of it.
        request: What is asked for.
        is_full: Whether a worker authors the module and maps the names where the cache does not
            know them; otherwise headers alone must do.
        speed: This machine's; the reference machine's where nobody asks for the time.
        progress: Told of each stage.

    Raises:
        EdgezooError: A worker died, or the hub cannot be reached any more.
    """
    return _Examination(text, prospect, request, speed or Speed(), progress).run(is_full=is_full)


class _Examination:
    """One plan in the making."""

    def __init__(
        self, text: str, prospect: Prospect, request: Request, speed: Speed, progress: Progress
    ) -> None:
        self._prospect = prospect
        self._request = request
        self._speed = speed
        self._progress = progress
        self._findings: list[Finding] = []
        card, repo = prospect.target.card, prospect.repo
        stated = repo.license if repo else "unknown"
        self._plan = Plan(
            target=text,
            source=prospect.name,
            family=None,
            plugin=None,
            commit=prospect.commit,
            license=card.license if card and stated == "unknown" else stated,
            is_gated=repo.is_gated if repo else bool(card and card.is_gated),
            recipe=request.recipe.name,
            engine=request.engine,
        )

    def run(self, *, is_full: bool) -> Plan:
        """Collects figures as far as they can be had."""
        settled = known = checkpoint = None
        with self._finding("access" if self._prospect.refusal else "family"):
            settled = sources.settle(self._prospect, family=self._request.family)
        if settled:
            self._tell(family=settled.plugin.family, plugin=str(settled.plugin))
            checkpoint = self._open()
            known = self._learn(settled, checkpoint, is_full=is_full)
        size = inputs.download_bytes(self._prospect, checkpoint, self._request.adapters)
        self._tell(download_bytes=size, download_seconds=size / costs.DOWNLOAD_RATE)
        self._check_adapters()
        if known and settled:
            self._measure(known, settled, checkpoint)
        else:
            self._check_disks(None, 0)
        found = sorted(self._findings, key=lambda f: _ORDER.index(f.level))
        return replace(self._plan, findings=tuple(found))

    def _open(self) -> Checkpoint | None:
        try:
            return self._prospect.open(progress=self._progress)
        except remote.UnreadableAfarError as e:
            self._find(
                "warning",
                "tensors",
                f"{e.message}: whether the names fit is known after the download",
                e.remedy,
            )
        except CheckpointError as e:
            self._find("error", "tensors", e.message, e.remedy, CheckpointError)
        return None

    def _learn(
        self, settled: Settled, checkpoint: Checkpoint | None, *, is_full: bool
    ) -> Facts | None:
        job = self._job(settled, checkpoint)
        if checkpoint and self._request.use_cache:
            with self._finding("recipe"):
                if known := facts.kept(job, settled.plugin, checkpoint):
                    return known
            if self._findings and self._findings[-1].subject == "recipe":
                return None
        if not is_full:
            return facts.from_headers(job, checkpoint) if checkpoint else None
        known, findings = facts.surveyed(job, checkpoint, self._progress)
        self._findings += findings
        if known and known.fit:
            fit = known.fit
            self._tell(
                missing=tuple(fit["missing"]),
                unexpected=tuple(fit["unexpected"]),
                misshapen=tuple(fit["misshapen"]),
            )
        return known

    def _job(self, settled: Settled, checkpoint: Checkpoint | None) -> Job:
        folder = checkpoint.folder if checkpoint else Path()
        card, request = self._prospect.target.card, self._request
        return sources.job(
            settled.model, settled.config, folder, card, request.recipe, request.shapes
        )

    def _measure(self, known: Facts, settled: Settled, checkpoint: Checkpoint | None) -> None:
        options = self._options(known, settled, checkpoint)
        if options is None:
            self._check_disks(None, 0)
            return
        size = sizes.artifact(known.rules, known.shapes, known.layers, options)
        artifact_bytes = known.artifact_bytes or size.total
        texts = inputs.texts(self._prospect)
        bundle_bytes = 0
        if self._request.with_bundle and texts:
            bundle_bytes = sizes.bundle(artifact_bytes, texts)
        work = self._work(known, options, size, bundle_bytes, texts, checkpoint)
        memory, seconds = costs.memory(work), costs.seconds(work, self._speed)
        self._tell(
            options=options,
            context_length=known.context_length,
            parameters=sum(math.prod(s) for s in known.shapes.values()),
            artifact_bytes=artifact_bytes,
            bundle_bytes=bundle_bytes,
            memory_bytes=memory,
            peak_memory_bytes=max(memory.values()),
            stage_seconds=seconds,
            seconds=sum(seconds.values()),
            basis=known.basis,
        )
        if known.kv_slot_bytes and known.context_length:
            lengths = sizes.kv_cache(
                known.kv_slot_bytes, known.context_length, options.kv_cache_length
            )
            self._tell(kv_cache_bytes=lengths)
        self._check_memory(work)
        self._check_output(options)
        self._check_disks(work, artifact_bytes + bundle_bytes)

    def _options(
        self, known: Facts, settled: Settled, checkpoint: Checkpoint | None
    ) -> SignatureOptions | None:
        job = self._job(settled, checkpoint)
        stated = settled.config.get("max_position_embeddings")
        context = known.context_length or (stated if isinstance(stated, int) else _LONG)
        with self._finding("shapes"):
            options = complete(job.shapes, job.base, context)
            if known.context_length:
                check_context(options, known.context_length)
            return options
        return None

    def _work(
        self,
        known: Facts,
        options: SignatureOptions,
        size: sizes.Sizes,
        bundle_bytes: int,
        texts: Mapping[str, int],
        checkpoint: Checkpoint | None,
    ) -> Work:
        weights, files = inputs.weights(self._prospect, checkpoint)
        return Work(
            engine=self._request.engine,
            basis=known.basis,
            jobs=self._request.jobs,
            signatures=len(options.prefill_lengths) + 1,
            layers=known.layers,
            parameters=sum(math.prod(s) for s in known.shapes.values()),
            rows=max((s[0] for s in known.shapes.values() if len(s) > 1), default=0),
            has_blocks=any(r.format and r.format.block_size for r in known.rules),
            sizes=size,
            checkpoint_bytes=weights,
            bundle_bytes=bundle_bytes,
            tokenizer_bytes=max(texts.values(), default=0),
            needs_torch=bool(self._request.adapters)
            or any(n.endswith(PYTORCH_SUFFIXES) for n in files),
            largest=max((math.prod(s) for s in known.shapes.values()), default=0),
            is_calibrated=self._request.recipe.calibrates,
            is_compensated=self._request.recipe.is_compensated,
        )

    def _check_adapters(self) -> None:
        for adapter in self._request.adapters:
            with self._finding("adapters"):
                adapter.parse()
        if self._request.adapters and self._request.engine == "litert":
            self._find(
                "error",
                "adapters",
                "litert-torch's path merges no adapters",
                "leave out --engine litert",
            )
        elif self._request.adapters:
            self._find("note", "adapters", "whether adapters fit is known once they are read")

    def _check_memory(self, work: Work) -> None:
        free = resources.available_memory_bytes()
        needed = self._plan.peak_memory_bytes or 0
        self._tell(available_memory_bytes=free)
        self._findings += limits.memory(work, needed, free)

    def _check_output(self, options: SignatureOptions) -> None:
        name = self._prospect.target.name
        request = self._request
        path = engines.output_path(
            request.output, name, request.recipe.name, options.kv_cache_length
        )
        self._findings += limits.output(path)
        if not request.force:
            with self._finding("output"):
                engines.refuse_existing(path, with_bundle=bool(self._plan.bundle_bytes))

    def _check_disks(self, work: Work | None, output_bytes: int) -> None:
        output = self._request.output.expanduser().absolute()
        uses = [("output", output, output_bytes)]
        if self._plan.download_bytes:
            from huggingface_hub import constants

            cache = Path(constants.HF_HUB_CACHE)
            uses.insert(0, ("download", cache, self._plan.download_bytes))
        if work and work.engine == "litert":
            uses.append(("float32 scratch", output, 4 * work.parameters))
        elif work and work.basis != "skeleton":
            graph = work.sizes.total - work.sizes.weights
            uses.append(("compiled graph", self._cache_root(), 2 * graph))
        disks = resources.disks(uses)
        self._tell(disks=disks)
        self._findings += limits.disks(disks)

    def _cache_root(self) -> Path:
        with suppress(CacheError):
            if self._request.use_cache:
                return default_root()
        return Path(tempfile.gettempdir())

    def _tell(self, **figures: Any) -> None:
        self._plan = replace(self._plan, **figures)

    def _find(
        self,
        level: Any,
        subject: str,
        message: str,
        remedy: str = "",
        kind: type[EdgezooError] | None = None,
    ) -> None:
        finding = Finding(level, subject, message, remedy)
        self._findings.append(replace(finding, kind=kind) if kind else finding)

    @contextmanager
    def _finding(self, subject: str) -> Iterator[None]:
        """Makes a finding of what the block raises."""
        try:
            yield
        except EdgezooError as e:
            self._find("error", subject, e.message, e.remedy, type(e))
