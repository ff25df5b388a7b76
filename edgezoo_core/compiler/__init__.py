"""From a job to a skeleton: out of the cache, or by workers. This process stays light."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from edgezoo_core import folds
from edgezoo_core.cache import Cache, Entry, digest
from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.compiler import versions, workers
from edgezoo_core.compiler.job import HEAD, PROGRAM, TRACE, Job, formats_to_json
from edgezoo_core.config import is_same_reading
from edgezoo_core.conversion.program import Program
from edgezoo_core.errors import CacheError
from edgezoo_core.folds import Place
from edgezoo_core.plugins import Plugin
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.types import Progress, silent


@dataclass(frozen=True, slots=True)
class Compiled:
    """A skeleton and what is known about it.

    Attributes:
        head: The open file that the artifact begins with; it stays readable whatever the cache
            does.
        program: How the rest is filled.
        options: The signatures' static shapes.
        signatures: As they stand in the file, plain values.
        recipe: Name, and format of each weight.
        places: Where folds apply.
        shapes: Of the parameters.
        growth_bytes: What a tied weight in two formats costs more.
        account: What became of each config field.
        warnings: What the manifest must say about the config.
        from_cache: Which of `trace` and `skeleton` came out of the cache.
        peak_memory_bytes: Largest memory of the workers, by stage.
    """

    head: IO[bytes]
    program: Program
    options: SignatureOptions
    signatures: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Any]
    places: Sequence[Place]
    shapes: Mapping[str, Sequence[int]]
    growth_bytes: int
    account: Mapping[str, Any]
    warnings: Sequence[str]
    from_cache: tuple[str, ...]
    peak_memory_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Kept:
    """What the cache has of a job already.

    Attributes:
        about: What the trace notes of the module (see `stages.trace`), None without one.
        made: Program, signatures and recipe of the skeleton, None without one.
    """

    about: Mapping[str, Any] | None = None
    made: Mapping[str, Any] | None = None


@contextmanager
def open_cache(*, is_kept: bool = True) -> Iterator[Cache]:
    """Gives the user's cache, or one that lasts as long as the block."""
    if is_kept:
        yield Cache()
        return
    with tempfile.TemporaryDirectory(prefix="edgezoo-") as folder:
        yield Cache(Path(folder))


def compile_job(
    job: Job,
    plugin: Plugin,
    checkpoint: Checkpoint,
    cache: Cache,
    *,
    jobs: int,
    progress: Progress = silent,
) -> Compiled:
    """Returns the skeleton of a job.

    Args:
        job: What shapes the file.
        plugin: The family's plugin.
        checkpoint: Its names, shapes and dtypes shape the program.
        cache: Where traces and skeletons are kept.
        jobs: Workers that trace side by side.
        progress: Told of each stage.

    Raises:
        EdgezooError: The model cannot be converted; the message says why.
        CacheError: The cache cannot be written.
    """
    return _Compilation(job, plugin, checkpoint, cache, jobs, progress).run()


def look_up(job: Job, plugin: Plugin, checkpoint: Checkpoint, cache: Cache) -> Kept:
    """Returns what the cache has of a job; of the checkpoint, headers are enough."""
    return _Compilation(job, plugin, checkpoint, cache, 1, silent).kept()


class _Compilation:
    """One compilation: what it asks the cache for, and what it tells."""

    def __init__(
        self,
        job: Job,
        plugin: Plugin,
        checkpoint: Checkpoint,
        cache: Cache,
        jobs: int,
        progress: Progress,
    ) -> None:
        self._job = job
        self._cache = cache
        self._jobs = jobs
        self._progress = progress
        self._common = _parts(job, plugin, checkpoint)
        self._from_cache: list[str] = []
        self._peaks: dict[str, int] = {}

    def run(self) -> Compiled:
        """Finds or makes trace and skeleton."""
        trace = self._trace()
        try:
            about = json.loads(trace.path(TRACE).read_text(encoding="utf-8"))
            skeleton = self._skeleton(trace)
            head = skeleton.path(HEAD).open("rb")
            made = json.loads(skeleton.path(PROGRAM).read_text(encoding="utf-8"))
        except FileNotFoundError as e:  # another process cleared the cache just now
            raise CacheError(f"{e.filename} is gone", remedy="convert once more") from e
        return Compiled(
            head,
            Program.from_json(made["program"]),
            SignatureOptions(**about["options"]),
            made["signatures"],
            made["recipe"],
            folds.from_json(about["folds"]),
            about["shapes"],
            made["growth_bytes"],
            about["account"],
            about["warnings"],
            tuple(self._from_cache),
            self._peaks,
        )

    def kept(self) -> Kept:
        """Looks into the cache and makes nothing."""
        with suppress(FileNotFoundError):  # another process cleared the cache just now
            if trace := self._found_trace():
                about = json.loads(trace.path(TRACE).read_text(encoding="utf-8"))
                skeleton = self._cache.get("skeleton", self._skeleton_parts(trace))
                if skeleton is None:
                    return Kept(about)
                return Kept(about, json.loads(skeleton.path(PROGRAM).read_text(encoding="utf-8")))
        return Kept()

    def _trace(self) -> Entry:
        if entry := self._found_trace():
            return entry
        key = digest({**self._common, "config": dict(self._job.config)})
        with self._cache.lock("trace", key, self._wait):
            return self._found_trace() or self._make_trace()

    def _found_trace(self) -> Entry | None:
        def accepts(parts: Mapping[str, Any]) -> bool:
            common = {name: value for name, value in parts.items() if name != "config"}
            same = digest(common) == digest(self._common)
            return same and is_same_reading(parts["config"], self._job.config)

        entry = self._cache.find("trace", accepts)
        if entry:
            self._from_cache.append("trace")
        return entry

    def _make_trace(self) -> Entry:
        count = max(1, self._jobs)
        with self._cache.adding("trace") as adding:
            requests = [
                {"job": self._job.to_json(), "folder": str(adding.folder), "share": [i, count]}
                for i in range(count)
            ]
            answers = workers.run("trace", requests, self._progress)
            self._peaks["trace"] = sum(a.peak_memory_bytes for a in answers)
            about = dict(answers[0].result)
            shares = [iter(a.result["signatures"]) for a in answers]
            total = sum(len(a.result["signatures"]) for a in answers)
            about["signatures"] = [next(shares[i % count]) for i in range(total)]
            adding.parts = {**self._common, "config": about.pop("reading")}
            adding.about = {"title": self._title(about["options"])}
            (adding.folder / TRACE).write_text(json.dumps(about), encoding="utf-8")
        return adding.entry

    def _skeleton(self, trace: Entry) -> Entry:
        parts = self._skeleton_parts(trace)
        if entry := self._cache.get("skeleton", parts):
            self._from_cache.append("skeleton")
            return entry
        with self._cache.lock("skeleton", digest(parts), self._wait):
            entry = self._cache.get("skeleton", parts)
            return entry or self._make_skeleton(trace, parts)

    def _skeleton_parts(self, trace: Entry) -> dict[str, Any]:
        return {"trace": trace.key, "recipe": formats_to_json(self._job.recipe)}

    def _make_skeleton(self, trace: Entry, parts: Mapping[str, Any]) -> Entry:
        with self._cache.adding("skeleton", parts) as adding:
            request = {
                "job": self._job.to_json(),
                "trace_folder": str(trace.folder),
                "folder": str(adding.folder),
            }
            (answer,) = workers.run("skeleton", [request], self._progress)
            self._peaks["skeleton"] = answer.peak_memory_bytes
            adding.about = {"title": f"{trace.about.get('title')}, {self._job.recipe.name}"}
        return adding.entry

    def _title(self, options: Mapping[str, Any]) -> str:
        lengths = " ".join(str(n) for n in options["prefill_lengths"])
        name = self._job.model.card_id or Path(self._job.model.source).name
        return (
            f"{name} ({self._job.model.family}), prefill {lengths}, KV {options['kv_cache_length']}"
        )

    def _wait(self, holder: str) -> None:
        self._progress(f"waiting for {holder}, which compiles the same model")


def _parts(job: Job, plugin: Plugin, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns all that shapes a trace, but for the config."""
    return {
        **versions.identity(plugin),
        "model": {"family": job.model.family, "card": job.model.card_id},
        "base": asdict(job.base),
        "shapes": asdict(job.shapes),
        "tensors": {n: [list(t.shape), t.dtype] for n, t in checkpoint.tensors.items()},
    }
