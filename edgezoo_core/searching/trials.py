"""Files that were made and examined: what they say should be tried next, and which one is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgezoo_core.searching import solver
from edgezoo_core.searching.options import Measured
from edgezoo_core.searching.promise import Promise
from edgezoo_core.searching.solver import Objective, Solution
from edgezoo_core.types import Recipe
from edgezoo_core.verification.exam import Lost

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
        cost: What the solver made least, as it counts it.
        size_bytes: Of the .tflite.
        lost: What it loses on the text that was held out.
        is_kept: Whether it keeps the promise.
    """

    recipe: Recipe
    formats: tuple[str, ...]
    predicted: float
    cost: float
    size_bytes: int
    lost: Lost
    is_kept: bool


def following(
    groups: Sequence[Measured], promise: Promise, trials: Sequence[Trial]
) -> Solution | None:
    """Returns what is to be tried next, None if nothing better is to be expected.

    Args:
        groups: What can be chosen.
        promise: What is asked for.
        trials: Files that were examined, in order.
    """
    if trials:
        last = trials[-1]
        is_close = last.is_kept and _used(promise, last) >= _CLOSE
        if is_close or len(trials) == _TRIALS:
            return None
    solution = _solve(groups, promise, trials)
    formats = tuple(o.format for o in solution.chosen)
    return None if formats in {t.formats for t in trials} else solution


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
            space -= _rest(groups, last)
    is_fast = objective == "loss" and promise.prefer == "speed"
    second = 1.0 if is_fast else solver.BALANCED
    found = solver.solve(groups, objective, budget, space, second)
    # What cannot be kept is missed by as little as can be: the size is kept first.
    found = found or solver.solve(groups, "loss", None, space)
    return found or solver.least(groups, "size")


def _used(promise: Promise, trial: Trial) -> float:
    """Returns how much of what is allowed a file uses up, as a share."""
    if promise.limits_loss:
        return promise.share(trial.lost)
    return trial.size_bytes / (promise.max_bytes or trial.size_bytes)


def best(trials: Sequence[Trial], promise: Promise) -> Trial:
    """Returns the trial that keeps a promise best, or comes nearest to it."""
    kept = [t for t in trials if t.is_kept]
    if kept and promise.limits_loss:
        return min(kept, key=lambda t: t.cost)
    fitting = [t for t in trials if not promise.max_bytes or t.size_bytes <= promise.max_bytes]
    if not fitting:
        return min(trials, key=lambda t: t.size_bytes)
    return min(fitting, key=lambda t: t.lost.mean_kl)


def curve(groups: Sequence[Measured], chosen: Trial) -> tuple[tuple[int, float], ...]:
    """Returns (bytes, mean KL in nats): the least loss at sizes from the smallest to the largest.

    Args:
        groups: What can be chosen.
        chosen: Its ratio of found to predicted loss is taken for all.
    """
    ratio = chosen.lost.mean_kl / chosen.predicted if chosen.predicted else 1.0
    rest = _rest(groups, chosen)
    low = solver.least(groups, "size").size_bytes
    high = solver.least(groups, "loss").size_bytes
    found = []
    for step in range(_POINTS):
        space = low + (high - low) * step // (_POINTS - 1)
        solution = solver.solve(groups, "loss", None, space)
        if solution:
            found.append((solution.size_bytes + rest, solution.loss * ratio))
    return tuple(found)


def _rest(groups: Sequence[Measured], trial: Trial) -> int:
    """Returns the bytes of a file that are in no group: the graph, and what is no matrix."""
    weights = sum(
        next(o.size_bytes for o in g.options if o.format == f)
        for g, f in zip(groups, trial.formats, strict=True)
    )
    return trial.size_bytes - weights
