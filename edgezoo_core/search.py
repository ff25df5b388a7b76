"""From a promise to the file that keeps it: the order of a search.

Two calibrations give every weight its coarsest form and an int8 one; each choice is weighed by
itself; the solver takes what should be best, a file of it is made and examined on text that
nothing else has read, and the solver hears how far its sum of losses was off. That repeats until
the best file is found that keeps the promise.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgezoo_core import artifact, engines, folds, partial, recipe_writing, zoo
from edgezoo_core.cache import Cache
from edgezoo_core.calibrating import passage
from edgezoo_core.calibration import Calibrated, Reading
from edgezoo_core.compiler import open_cache, workers
from edgezoo_core.errors import ArtifactError, RecipeError
from edgezoo_core.recipe import FORMATS
from edgezoo_core.searching import mixture
from edgezoo_core.searching import trials as tried
from edgezoo_core.searching.options import Measured
from edgezoo_core.searching.promise import Promise
from edgezoo_core.searching.solver import Solution
from edgezoo_core.searching.trials import Trial
from edgezoo_core.stopwatch import Stopwatch
from edgezoo_core.types import Progress, Recipe, silent
from edgezoo_core.verification.exam import HELD_OUT, Lost
from edgezoo_core.zoo import Conversion

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search gives.

    Attributes:
        promise: What was asked for.
        conversion: Of the file that was chosen.
        recipe_file: The recipe that makes it again.
        groups: What could be chosen, and what each choice loses by itself.
        trials: Files that were examined.
        chosen: The one that was taken.
        curve: (bytes, mean KL): the least loss at sizes from the smallest to the largest, as the
            solver has it, by the chosen file's own ratio of found to predicted loss.
    """

    promise: Promise
    conversion: Conversion
    recipe_file: Path
    groups: tuple[Measured, ...]
    trials: tuple[Trial, ...]
    chosen: Trial
    curve: tuple[tuple[int, float], ...]

    def record(self) -> dict[str, Any]:
        """Returns what the manifest says of it."""
        return {
            "asked": self.promise.to_json(),
            "is_kept": self.chosen.is_kept,
            "lost": asdict(self.chosen.lost),
            "trials": len(self.trials),
        }


def keep(
    text: str,
    promise: Promise,
    *,
    held_out: Path | None = None,
    progress: Progress = silent,
    recipe: str | None = None,
    force: bool = False,
    **wanted: Any,
) -> Found:
    """Converts a target to the best file that keeps a promise, or comes nearest to it.

    Args:
        text: As `edgezoo_core.zoo.convert` takes it, with the other arguments.
        promise: What may be lost.
        held_out: A text that files are examined on, in place of the carried one.
        progress: Told of each stage.
        recipe: None: it is what is looked for.
        force: Whether to replace what stands there, the recipe file included.
        wanted: As `edgezoo_core.zoo.place_order` takes it.

    Raises:
        RecipeError: A recipe is named, too, or the engine cannot do it.
        EdgezooError: The model cannot be converted; nothing that was there before is lost.
    """
    if recipe is not None:
        raise RecipeError(
            "a promise chooses the recipe, and one is named, too", remedy="leave out --recipe"
        )
    watch = Stopwatch(progress)
    examined_on = passage.read(held_out, HELD_OUT)
    # Formats matter to nobody yet, only the name does.
    asked = Recipe(promise.name, FORMATS["dynamic_int8"], is_smoothed=True, is_compensated=True)
    order = zoo.place_order(text, watch, recipe=asked, force=force, **wanted)
    with ExitStack() as stack:
        cache = stack.enter_context(open_cache(is_kept=order.use_cache))
        path = order.path(order.job.shapes.kv_cache_length or order.job.base.kv_cache_length)
        if not order.force:
            artifact.refuse_existing(recipe_path(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = stack.enter_context(partial.folder(path.parent, "search"))
        search = _Search(order, promise, cache, scratch, watch)
        groups, trials = search.run(examined_on)
        chosen = tried.best(trials, promise)
        conversion = search.convert(chosen)
    found = Found(
        promise,
        conversion,
        _write_recipe(conversion),
        tuple(groups),
        tuple(trials),
        chosen,
        tried.curve(groups, chosen),
    )
    made = conversion.artifact
    manifest = {**(made.manifest or {}), "promise": found.record()}
    written = artifact.write_manifest(made.path, manifest)
    return replace(found, conversion=replace(conversion, artifact=written))


class _Search:
    """One search: what was measured, and what was tried."""

    def __init__(
        self,
        order: engines.Order,
        promise: Promise,
        cache: Cache,
        scratch: Path,
        watch: Stopwatch,
    ) -> None:
        self._order = order
        self._promise = promise
        self._cache = cache
        self._scratch = scratch
        self._watch = watch
        self._folds: dict[str, mixture.Folds] = {}
        self._peaks = [0]
        self._request = {
            "job": order.job.to_json(),
            "adapters": order.adapters.to_json() if order.adapters else [],
        }
        text = passage.read(order.calibration)
        watch("calibrating")
        self._reading = Reading.of(order.job, order.source, order.adapters, text, watch)

    def run(self, held_out: str) -> tuple[list[Measured], list[Trial]]:
        """Returns what could be chosen and what was tried, in order."""
        groups = self._weighed()
        passages = self._work(
            "refer_held_out",
            **self._request,
            text=held_out,
            longest=self._capacity(),
            folder=str(self._scratch),
        )["passages"]
        trials: list[Trial] = []
        while solution := tried.following(groups, self._promise, trials):
            trials.append(self._try(groups, solution, passages))
        return groups, trials

    def convert(self, trial: Trial) -> Conversion:
        """Makes the file of a trial where it was asked for."""
        made = self._convert(trial.recipe, self._order)
        peaks = {**made.peak_memory_bytes, "searching": max(self._peaks)}
        return replace(made, peak_memory_bytes=peaks)

    def _capacity(self) -> int:
        job = self._order.job
        return job.shapes.kv_cache_length or job.base.kv_cache_length

    def _weighed(self) -> list[Measured]:
        """Returns what can be chosen, with what each choice loses."""
        found = self._work("choices", **self._request)["groups"]
        groups = [Measured.from_json(group) for group in found]
        coarse = [g.options[0].format for g in groups]
        fine = ["dynamic_int8" for _ in groups]
        calibrated = {}
        for formats in (coarse, fine):
            recipe = replace(mixture.recipe(self._promise.name, groups, formats), is_smoothed=True)
            by_text = self._calibrated(recipe)
            told = {
                "folds": {place: folds.spell(k) for place, k in by_text.recipe.folds.items()},
                "codes": [str(path) for path in by_text.paths],
            }
            for fmt in set(formats):
                calibrated[fmt] = told
                self._folds[fmt] = by_text.recipe.folds
        calibrated["weight_only_int8"] = calibrated["dynamic_int8"]
        self._folds["weight_only_int8"] = self._folds["dynamic_int8"]
        recipe = mixture.recipe(self._promise.name, groups, fine)
        key = {fmt: told["folds"] for fmt, told in calibrated.items()}
        entry, peak = self._reading.entry("weigh", recipe, self._cache, key, calibrated=calibrated)
        self._peaks.append(peak)
        losses = self._reading.answer(entry)["losses"]
        return [
            replace(
                group,
                options=tuple(
                    replace(option, loss=max(loss, 0.0))
                    for option, loss in zip(group.options, lost, strict=True)
                ),
            )
            for group, lost in zip(groups, losses, strict=True)
        ]

    def _try(
        self, groups: Sequence[Measured], solution: Solution, passages: Sequence[Sequence[int]]
    ) -> Trial:
        formats = tuple(o.format for o in solution.chosen)
        recipe = mixture.recipe(self._promise.name, groups, formats, self._folds)
        path = self._scratch / "trial.tflite"
        order = replace(self._order, output=path, force=True, with_bundle=False)
        made = self._convert(recipe, order)
        self._watch("examining the file")
        lost = Lost(
            **self._work(
                "examine_held_out", path=str(path), passages=passages, folder=str(self._scratch)
            )
        )
        size = made.artifact.path.stat().st_size
        trial = Trial(
            recipe,
            formats,
            solution.loss,
            solution.cost,
            size,
            lost,
            self._promise.is_kept(lost, size),
        )
        logger.info(
            "%.1f MB loses %.4f nats (%.4f predicted), perplexity %+.1f %%: %s",
            size / 1e6,
            lost.mean_kl,
            solution.loss,
            100 * lost.ppl_increase,
            "kept" if trial.is_kept else "not kept",
        )
        return trial

    def _convert(self, recipe: Recipe, order: engines.Order) -> Conversion:
        found = self._calibrated(recipe)
        job = replace(order.job, recipe=found.recipe)
        return zoo.carry_out(replace(order, job=job, codes=found.codes), "streaming", self._watch)

    def _calibrated(self, recipe: Recipe) -> Calibrated:
        found = self._reading.calibrated(recipe, self._cache)
        self._peaks.append(found.peak_memory_bytes)
        return found

    def _work(self, stage: str, **request: Any) -> Mapping[str, Any]:
        (answer,) = workers.run(stage, [request], self._watch)
        self._peaks.append(answer.peak_memory_bytes)
        return answer.result


def _write_recipe(conversion: Conversion) -> Path:
    """Writes the recipe that makes the file again beside it."""
    path = recipe_path(conversion.artifact.path)
    named = recipe_writing.recipe_file(conversion.artifact.manifest or {})
    if named is None:
        raise ArtifactError(
            f"the recipe of {conversion.artifact.path} cannot be written",
            remedy="report it with the model",
        )
    with artifact.writing(path) as (output, _):
        output.write_text(named[1], encoding="utf-8")
    return path


def recipe_path(path: Path) -> Path:
    """Returns where the recipe of a .tflite goes."""
    return path.with_suffix(".toml")
