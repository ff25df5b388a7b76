"""What a recipe asks of calibration: what it folds, and its weights rounded."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core.cache import Cache, Entry
from edgezoo_core.calibrating import passage
from edgezoo_core.compiler import open_cache, versions, workers
from edgezoo_core.compiler.job import Job, recipe_to_json
from edgezoo_core.conversion.codes import NO_CODES, SUFFIX, Codes
from edgezoo_core.errors import CacheError, CalibrationError
from edgezoo_core.sources import Source
from edgezoo_core.types import Progress, Recipe, silent

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet

logger = logging.getLogger(__name__)

#: What a stage answered.
_ANSWER = "answer.json"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What calibration gives.

    Attributes:
        recipe: The job's, which says what is folded now.
        codes: Weights that are rounded already, if the recipe compensates.
        paths: Where they are, as long as the cache keeps them.
        peak_memory_bytes: The most that a worker took; 0 if all was in the cache.
    """

    recipe: Recipe
    codes: Codes
    paths: tuple[Path, ...]
    peak_memory_bytes: int


def calibrate(
    job: Job,
    source: Source,
    adapters: AdapterSet | None,
    text: Path | None = None,
    *,
    use_cache: bool = True,
    progress: Progress = silent,
) -> Calibrated:
    """Lets the model read a text, and does what the job's recipe asks for.

    Args:
        job: What is converted, with a recipe that is to be smoothed or compensated.
        source: Its checkpoint.
        adapters: What is merged into it.
        text: A text file to calibrate on in place of the carried one.
        use_cache: Whether what was found is kept, and used again.
        progress: Told of each stage.

    Raises:
        CalibrationError: The text cannot be used.
        EdgezooError: The model cannot be run.
    """
    read = passage.read(text)
    progress("calibrating")
    reading = Reading.of(job, source, adapters, read, progress)
    try:
        with open_cache(is_kept=use_cache) as cache:
            return reading.calibrated(job.recipe, cache)
    except CacheError as e:
        if not use_cache:
            raise CalibrationError(
                f"what is in the making cannot be kept in {tempfile.gettempdir()}: {e.message}",
                remedy="free some space there, or set TMPDIR to a folder that can be written",
            ) from e
        logger.warning("%s; calibrating without the cache", e.message)
    return calibrate(job, source, adapters, text, use_cache=False, progress=progress)


@dataclass(frozen=True, slots=True)
class Reading:
    """A model that reads a text, in a worker, for what it has not been read for yet.

    `parts` is all that what is found follows from, stage and recipe apart.
    """

    job: Job
    adapters: Sequence[Any]
    text: str
    parts: Mapping[str, Any]
    progress: Progress

    @classmethod
    def of(
        cls, job: Job, source: Source, adapters: AdapterSet | None, text: str, progress: Progress
    ) -> Reading:
        """Returns a job's reading of a text; its files are hashed meanwhile."""
        parts = {
            **versions.identity(source.plugin),
            "model": {"family": job.model.family, "card": job.model.card_id},
            "config": dict(job.config),
            "files": [[f.name, f.sha256] for f in source.checkpoint.hash_files(progress)],
            "adapters": adapters.record() if adapters else [],
            "text": passage.digest(text),
        }
        return cls(job, adapters.to_json() if adapters else [], text, parts, progress)

    def calibrated(self, recipe: Recipe, cache: Cache) -> Calibrated:
        """Returns what calibration gives for a recipe of the job's model.

        Raises:
            CacheError: The cache cannot be used.
            EdgezooError: The model cannot be run.
        """
        peaks = [0]
        if recipe.is_smoothed:
            entry, peak = self.entry("smooth", recipe, cache)
            peaks.append(peak)
            found = self.answer(entry)["folds"]
            if not found:
                logger.warning(
                    "recipe %s: nothing is folded, since nothing would be gained, or family %s"
                    " declares no folds",
                    recipe.name,
                    self.job.model.family,
                )
            exponents = {place: tuple(values) for place, values in found.items()}
            recipe = replace(recipe, is_smoothed=False, folds=exponents)
        paths: tuple[Path, ...] = ()
        codes = NO_CODES
        if recipe.is_compensated:
            entry, peak = self.entry("compensate", recipe, cache)
            peaks.append(peak)
            paths = tuple(entry.path(name) for name in entry.files if name.endswith(SUFFIX))
            with _telling():
                codes = Codes(paths)
        return Calibrated(recipe, codes, paths, max(peaks))

    def answer(self, entry: Entry) -> Mapping[str, Any]:
        """Returns what a stage answered.

        Raises:
            CacheError: It is gone.
        """
        with _telling():
            found: Mapping[str, Any] = json.loads(entry.path(_ANSWER).read_text(encoding="utf-8"))
            return found

    def entry(
        self,
        stage: str,
        recipe: Recipe,
        cache: Cache,
        key: Any = None,
        **request_also: Any,
    ) -> tuple[Entry, int]:
        """Returns what a stage gives for a recipe, and the peak memory of finding it.

        Args:
            stage: What a worker does.
            recipe: Of the job that it is given.
            cache: Where it is looked for, and kept.
            key: What else it depends on.
            request_also: What else the worker is given.
        """
        parts = {**self.parts, "stage": stage, "recipe": recipe_to_json(recipe)}
        if key is not None:
            parts["key"] = key
        known = cache.get("calibration", parts)
        if known:
            return known, 0
        with cache.adding("calibration", parts) as adding:
            adding.about = {"title": f"{self.job.model.source}, {recipe.name}, {stage}"}
            request: dict[str, Any] = {
                "job": replace(self.job, recipe=recipe).to_json(),
                "adapters": self.adapters,
                "text": self.text,
                **request_also,
            }
            if stage == "compensate":
                request["folder"] = str(adding.folder)
            (answer,) = workers.run(stage, [request], self.progress)
            (adding.folder / _ANSWER).write_text(json.dumps(answer.result), encoding="utf-8")
        return adding.entry, answer.peak_memory_bytes


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as e:  # another process cleared the cache just now
        raise CacheError("a calibration is gone", remedy="convert once more") from e
