"""Which format each group gets, if losses, sizes and times add up.

A multiple-choice knapsack, solved as an integer program by HiGHS (scipy's `milp`). That losses add
up is an assumption: small errors that know nothing of each other do, nearly, and whoever uses the
answer holds a file against it and solves again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from edgezoo_core.searching.options import Measured, Option

Floats = npt.NDArray[np.float64]
Objective = Literal["loss", "size", "speed"]

#: What a percent of the second objective counts as, in percents of the first: a file that is a
#: percent smaller may take four percent longer, and one that loses a percent less, too.
BALANCED = 0.25
#: The same where only ties are to be broken.
EXACT = 1e-3
#: Of what a choice amounts to if all weights have it, if they can: what percents are of.
_REFERENCE = "dynamic_int8"
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
        cost: What was made least, 1 for dynamic_int8 throughout and what comes second apart.
    """

    chosen: tuple[Option, ...]
    loss: float
    size_bytes: int
    work: float
    cost: float = 0.0


def solve(
    groups: Sequence[Measured],
    objective: Objective,
    max_loss: float | None = None,
    max_bytes: int | None = None,
    second: float = EXACT,
) -> Solution | None:
    """Returns the best choice, or None if none keeps the limits.

    Args:
        groups: What can be chosen.
        objective: What is to be least. What comes second is time, or size where time comes first.
        max_loss: Of all losses together.
        max_bytes: Of all weights together.
        second: How much what comes second counts.
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
    known = {"loss": losses, "size": sizes, "speed": works}
    also = sizes if objective == "speed" else works
    usual = np.array([o is _usual(groups[owner]) for o, owner in zip(options, owners, strict=True)])
    costs = _share(known[objective], usual) + second * _share(also, usual)
    answer = milp(
        costs,
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": _GAP, "node_limit": _NODES},
    )
    if answer.x is None:
        return None
    found = total([o for o, taken in zip(options, answer.x, strict=True) if taken > 0.5])
    return replace(found, cost=float(costs[answer.x > 0.5].sum()))


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


def _usual(group: Measured) -> Option:
    named = [o for o in group.options if o.format == _REFERENCE]
    return named[0] if named else group.options[-1]


def _share(values: Floats, usual: npt.NDArray[np.bool_]) -> Floats:
    whole = float(values[usual].sum()) or float(values.max())
    return values / whole if whole > 0 else np.zeros_like(values)
