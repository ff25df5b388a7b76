"""How near is near enough: bounds, and a file's outputs token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgezoo_core.runtime import Session
from edgezoo_core.types import QuantPlan
from edgezoo_core.verification import measures
from edgezoo_core.verification.report import MAX_STRUCTURE
from edgezoo_core.verification.runs import Floats

#: Largest difference between two float32 computations of the same, as a share of the norm.
MAX_DIFFERENCE = MAX_STRUCTURE
#: What a varied config has to change of the reference, as a share of the norm, to be demanded of
#: the plugin: clearly more than rounding.
MIN_EFFECT = 5 * MAX_DIFFERENCE
#: Largest mean KL in nats of a small random model against itself in float32, by the coarsest format
#: in it. About three times the most that eight models of each of Llama, Gemma and Phi, and one of
#: Granite, lost: 3e-5, 2e-3, 3e-3, 0.38. Logits that have nothing to do with each other lose two.
MAX_KL: Mapping[str, float] = {
    "none": 1e-9,
    "fp16": 1e-4,
    "weight_only_int8": 0.006,
    "dynamic_int8": 0.01,
    "int4": 1.0,
}


def difference(expected: Any, found: Any) -> float:
    """Returns the norm of the difference over the norm of what is expected; inf if that is none."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (expected, found))
    if a.shape != b.shape or not np.isfinite(b).all():
        return float("inf")
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(a), np.finfo(np.float32).tiny))


def read(path: Path, tokens: torch.Tensor, first: int) -> Floats:
    """Lets a file read tokens, int32 [1, T], the first by prefill and the others by decode.

    Returns:
        logits: float32 [T - first + 1, V], of what follows the first ones, and each after them.
    """
    ids: Sequence[int] = tokens[0].tolist()
    with Session(path, num_threads=1) as session:
        rows = [session.feed(ids[:first]), *(session.feed([token]) for token in ids[first:])]
    return np.stack(rows)


def mean_kl(expected: Any, found: Floats) -> float:
    """Returns the mean Kullback-Leibler divergence, in nats; inf if something is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    return measures.loss(np.asarray(expected), found, ()).mean_kl


def bound(plan: QuantPlan) -> float:
    """Returns the mean KL that a file may lose by its formats."""
    names = {rule.format.name if rule.format else "none" for rule in plan.rules}
    return max((MAX_KL["int4" if "int4" in n else n] for n in names), default=MAX_KL["none"])
