"""Which format each group gets, if losses, sizes and times add up.

A multiple-choice knapsack, solved as an integer program by HiGHS (scipy's `milp`). That losses add
up is an assumption: small errors that know nothing of each other do, nearly, and whoever uses the
answer holds a file against it and solves again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from edgezoo_core.searching.options import Measured, Option

Objective = Literal["loss", "size", "speed"]

#: What else is small if it costs next to nothing, of the objective's own range.
_SECOND = 1e-3
#: A solution is at most so far from the best, and no proof takes longer than so many nodes.
_GAP, _NODES = 1e-4, 20_000


@dataclass(frozen=True, slots=True)
class Solution:
    """A choice for each group.

    Attributes:
        chosen: By group, in order.
        loss: Mean KL in nats, added up.
        size_bytes: Of all weights.
        work: Of all weights, in weights of dynamic_int8.
    """

    chosen: tuple[Option, ...]
    loss: float
    size_bytes: int
    work: float


def solve(
    groups: Sequence[Measured],
    objective: Objective,
    max_loss: float | None = None,
    max_bytes: int | None = None,
) -> Solution | None:
    """Returns the best choice, or None if none keeps the limits.

    Args:
        groups: What can be chosen.
        objective: What is to be least.
        max_loss: Of all losses together.
        max_bytes: Of all weights together.
    """
    options = [option for group in groups for option in group.options]
    owners = [number for number, group in enumerate(groups) for _ in group.options]
    one_each = csr_array(
        (np.ones(len(options)), (owners, range(len(options)))), shape=(len(groups), len(options))
    )
    constraints = [LinearConstraint(one_each, 1, 1)]
    losses = np.array([o.loss for o in options])
    sizes = np.array([float(o.size_bytes) for o in options])
    works = np.array([o.work for o in options])
    for values, limit in ((losses, max_loss), (sizes, max_bytes)):
        if limit is not None:
            scale = max(float(values.max()), 1e-12)  # as numbers near one
            constraints.append(LinearConstraint(values[None] / scale, ub=limit / scale))
    first, second = {
        "loss": (losses, sizes),
        "size": (sizes, works),
        "speed": (works, sizes),
    }[objective]
    answer = milp(
        _normal(first) + _SECOND * _normal(second),
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": _GAP, "node_limit": _NODES},
    )
    if answer.x is None:
        return None
    return total([o for o, taken in zip(options, answer.x, strict=True) if taken > 0.5])


def total(chosen: Sequence[Option]) -> Solution:
    """Returns what a choice for each group amounts to."""
    return Solution(
        tuple(chosen),
        sum(o.loss for o in chosen),
        sum(o.size_bytes for o in chosen),
        sum(o.work for o in chosen),
    )


def least(groups: Sequence[Measured], objective: Objective) -> Solution:
    """Returns what is least of all, whatever the rest."""
    key = {"loss": "loss", "size": "size_bytes", "speed": "work"}[objective]
    return total([min(g.options, key=lambda o: float(getattr(o, key))) for g in groups])


def _normal(
    values: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    spread = float(values.max() - values.min())
    return values / spread if spread > 0 else np.zeros_like(values)
