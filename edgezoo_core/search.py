"""From a promise to the file that keeps it: the order of a search.

Two calibrations give every weight its coarsest form and an int8 one; each choice is weighed by
itself; the solver takes what should be best, a file of it is made and examined on text that
nothing else has read, and the solver hears how far its sum of losses was off. That repeats until
the best file is found that keeps the promise.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgezoo_core import artifact, engines, folds, partial, recipe_writing, zoo
from edgezoo_core.cache import Cache
from edgezoo_core.calibrating import passage
from edgezoo_core.calibration import Reading
from edgezoo_core.compiler import open_cache, workers
from edgezoo_core.errors import ArtifactError, RecipeError
from edgezoo_core.recipe import FORMATS
from edgezoo_core.searching import mixture, solver
from edgezoo_core.searching.options import Measured
from edgezoo_core.searching.promise import Promise
from edgezoo_core.searching.solver import Objective, Solution
from edgezoo_core.stopwatch import Stopwatch
from edgezoo_core.types import Progress, Recipe, silent
from edgezoo_core.verification.exam import HELD_OUT, Lost
from edgezoo_core.zoo import Conversion

logger = logging.getLogger(__name__)

#: Files that are made and examined at most.
_TRIALS = 5
#: What is left of an allowance on purpose: a solution that uses it up misses by its noise.
_MARGIN = 0.97
#: A file that uses up so much of what is allowed cannot be bettered by much.
_CLOSE = 0.93
#: Points of the curve of least losses.
_POINTS = 24
#: The least that losses are off, as a factor: a passage may make a file look better than it is.
_LEAST_RATIO = 0.2


@dataclass(frozen=True, slots=True)
class Trial:
    """A file that was made and examined.

    Attributes:
        recipe: Its recipe, with what is folded.
        formats: Of each group, in order.
        predicted: Mean KL in nats, as the sum of what each choice loses by itself.
        work: Time of its weights in decode, in weights of dynamic_int8.
        size_bytes: Of the .tflite.
        lost: What it loses on the text that was held out.
        is_kept: Whether it keeps the promise.
    """

    recipe: Recipe
    formats: tuple[str, ...]
    predicted: float
    work: float
    size_bytes: int
    lost: Lost
    is_kept: bool


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
        chosen = _best(trials, promise)
        conversion = search.convert(chosen)
    found = Found(
        promise,
        conversion,
        _write_recipe(conversion, force=order.force),
        tuple(groups),
        tuple(trials),
        chosen,
        _curve(groups, chosen, promise),
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
        (answer,) = workers.run(
            "refer_held_out",
            [
                {
                    **self._request,
                    "text": held_out,
                    "longest": self._capacity(),
                    "folder": str(self._scratch),
                }
            ],
            self._watch,
        )
        trials: list[Trial] = []
        while solution := self._next(groups, trials):
            trials.append(self._try(groups, solution, answer.result["passages"]))
        return groups, trials

    def convert(self, trial: Trial) -> Conversion:
        """Makes the file of a trial where it was asked for."""
        return self._convert(trial.recipe, self._order)

    def _capacity(self) -> int:
        job = self._order.job
        return job.shapes.kv_cache_length or job.base.kv_cache_length

    def _weighed(self) -> list[Measured]:
        """Returns what can be chosen, with what each choice loses."""
        (answer,) = workers.run("choices", [self._request], self._watch)
        groups = [Measured.from_json(g) for g in answer.result["groups"]]
        coarse = [g.options[0].format for g in groups]
        fine = ["dynamic_int8" for _ in groups]
        calibrated = {}
        for formats in (coarse, fine):
            recipe = replace(mixture.recipe(self._promise.name, groups, formats), is_smoothed=True)
            found = self._reading.calibrated(recipe, self._cache)
            told = {
                "folds": {place: folds.spell(k) for place, k in found.recipe.folds.items()},
                "codes": [str(path) for path in found.paths],
            }
            for fmt in set(formats):
                calibrated[fmt] = told
                self._folds[fmt] = found.recipe.folds
        calibrated["weight_only_int8"] = calibrated["dynamic_int8"]
        self._folds["weight_only_int8"] = self._folds["dynamic_int8"]
        recipe = mixture.recipe(self._promise.name, groups, fine)
        key = {fmt: told["folds"] for fmt, told in calibrated.items()}
        entry, _ = self._reading.entry("weigh", recipe, self._cache, key, calibrated=calibrated)
        losses = self._reading.answer(entry)["losses"]
        return [
            replace(
                group,
                options=tuple(
                    replace(option, loss=max(loss, 0.0))
                    for option, loss in zip(group.options, found, strict=True)
                ),
            )
            for group, found in zip(groups, losses, strict=True)
        ]

    def _next(self, groups: Sequence[Measured], trials: Sequence[Trial]) -> Solution | None:
        """Returns what is to be tried next, by what was found of the trials so far."""
        if trials:
            last = trials[-1]
            is_close = last.is_kept and _used(self._promise, last) >= _CLOSE
            if is_close or len(trials) == _TRIALS:
                return None
        solution = _solve(groups, self._promise, trials)
        formats = tuple(o.format for o in solution.chosen)
        return None if formats in {t.formats for t in trials} else solution

    def _try(
        self, groups: Sequence[Measured], solution: Solution, passages: Sequence[Sequence[int]]
    ) -> Trial:
        formats = tuple(o.format for o in solution.chosen)
        recipe = mixture.recipe(self._promise.name, groups, formats, self._folds)
        path = self._scratch / "trial.tflite"
        order = replace(self._order, output=path, force=True, with_bundle=False)
        made = self._convert(recipe, order)
        self._watch("examining the file")
        request = {"path": str(path), "passages": passages, "folder": str(self._scratch)}
        (answer,) = workers.run("examine_held_out", [request], self._watch)
        lost = Lost(**answer.result)
        size = made.artifact.path.stat().st_size
        trial = Trial(
            recipe,
            formats,
            solution.loss,
            solution.work,
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
        found = self._reading.calibrated(recipe, self._cache)
        job = replace(order.job, recipe=found.recipe)
        return zoo.carry_out(replace(order, job=job, codes=found.codes), "streaming", self._watch)


def _solve(groups: Sequence[Measured], promise: Promise, trials: Sequence[Trial]) -> Solution:
    """Returns what should be best, by what is known of how far predictions are off."""
    objective: Objective = promise.prefer if promise.limits_loss else "loss"
    budget, space = promise.budget(), promise.max_bytes
    if trials:
        last = trials[-1]
        if budget is not None:
            # How much of the allowance the prediction stood for.
            share = max(promise.share(last.lost), _LEAST_RATIO * last.predicted / budget)
            budget = last.predicted / max(share, 1e-9) * _MARGIN
        if space is not None:
            weights = sum(
                next(o.size_bytes for o in g.options if o.format == f)
                for g, f in zip(groups, last.formats, strict=True)
            )
            space -= last.size_bytes - weights  # the graph, and what is no matrix
    found = solver.solve(groups, objective, budget, space)
    # What cannot be kept is missed by as little as can be: the size is kept first.
    found = found or solver.solve(groups, "loss", None, space)
    return found or solver.least(groups, "size")


def _used(promise: Promise, trial: Trial) -> float:
    """Returns how much of what is allowed a file uses up, as a share."""
    if promise.limits_loss:
        return promise.share(trial.lost)
    return trial.size_bytes / (promise.max_bytes or trial.size_bytes)


def _best(trials: Sequence[Trial], promise: Promise) -> Trial:
    kept = [t for t in trials if t.is_kept]
    if kept and promise.limits_loss:
        return min(kept, key=lambda t: t.size_bytes if promise.prefer == "size" else t.work)
    fitting = [t for t in trials if not promise.max_bytes or t.size_bytes <= promise.max_bytes]
    if not fitting:
        return min(trials, key=lambda t: t.size_bytes)
    return min(fitting, key=lambda t: t.lost.mean_kl)


def _curve(
    groups: Sequence[Measured], chosen: Trial, promise: Promise
) -> tuple[tuple[int, float], ...]:
    ratio = chosen.lost.mean_kl / chosen.predicted if chosen.predicted else 1.0
    weights = sum(
        next(o.size_bytes for o in g.options if o.format == f)
        for g, f in zip(groups, chosen.formats, strict=True)
    )
    rest = chosen.size_bytes - weights
    low = solver.least(groups, "size").size_bytes
    high = solver.least(groups, "loss").size_bytes
    found = []
    for step in range(_POINTS):
        space = low + (high - low) * step // (_POINTS - 1)
        solution = solver.solve(groups, "loss", None, space)
        if solution:
            found.append((solution.size_bytes + rest, solution.loss * ratio))
    return tuple(found)


def _write_recipe(conversion: Conversion, *, force: bool) -> Path:
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
