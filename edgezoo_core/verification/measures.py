"""How far a subject is from its reference, over the same passage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgezoo_core.verification.runs import Floats, Run

_TOP = 5


@dataclass(frozen=True, slots=True)
class Loss:
    """What a subject's logits lose against the reference's.

    Attributes:
        positions: Positions that were compared.
        largest_difference: Largest absolute difference of a logit.
        mean_difference: Mean absolute difference of the logits.
        relative_difference: Norm of the difference of all logits over the norm of the reference's.
        mean_kl: Mean Kullback-Leibler divergence of the next token's distribution, in nats.
        p99_kl: Its 99th percentile over the positions.
        top1: Share of positions where both choose the same token.
        top5: Mean share of the reference's five likeliest tokens that are among the subject's.
        reference_perplexity: Of the passage, for the reference.
        subject_perplexity: The same for the subject.
    """

    positions: int
    largest_difference: float
    mean_difference: float
    relative_difference: float
    mean_kl: float
    p99_kl: float
    top1: float
    top5: float
    reference_perplexity: float
    subject_perplexity: float


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """How far the keys and values of one layer are apart: norm of the difference over the norm."""

    layer: int
    keys: float
    values: float


def loss(reference: Floats, subject: Floats, following: Sequence[int]) -> Loss:
    """Compares logits, float32 [P, V], position by position.

    Args:
        reference: What is right.
        subject: What is judged.
        following: The token that follows each position but the last, P - 1 of them.
    """
    count = len(reference)
    kl, top1, top5 = np.zeros(count), np.zeros(count), np.zeros(count)
    largest = total = squared = norm = 0.0
    surprise = np.zeros((2, len(following)))
    for i in range(count):  # one row at a time: a vocabulary is wide
        p, q = (_log_softmax(x[i]) for x in (reference, subject))
        difference = np.abs(reference[i].astype(np.float64) - subject[i])
        largest, total = max(largest, float(difference.max())), total + float(difference.mean())
        squared += float((difference**2).sum())
        norm += float((reference[i].astype(np.float64) ** 2).sum())
        kl[i] = float((np.exp(p) * (p - q)).sum())
        a, b = _top(reference[i]), _top(subject[i])
        top1[i] = np.argmax(reference[i]) == np.argmax(subject[i])
        top5[i] = len(a & b) / len(a)
        if i < len(following):
            surprise[:, i] = -p[following[i]], -q[following[i]]
    perplexities = np.exp(surprise.mean(1)) if len(following) else (np.nan, np.nan)
    return Loss(
        positions=count,
        largest_difference=largest,
        mean_difference=total / count,
        relative_difference=float(np.sqrt(squared / norm)) if norm else 0.0,
        mean_kl=float(kl.mean()),
        p99_kl=float(np.percentile(kl, 99)),
        top1=float(top1.mean()),
        top5=float(top5.mean()),
        reference_perplexity=float(perplexities[0]),
        subject_perplexity=float(perplexities[1]),
    )


def layers(
    reference: Run, subject: Run, factors: Mapping[int, Floats] | None = None
) -> list[LayerDifference]:
    """Compares the keys and values of every layer.

    Args:
        reference: What is right.
        subject: What is judged.
        factors: Layer -> what the subject's values were multiplied by, float32 [Hkv * D], where a
            recipe folds them.
    """
    found = []
    for i in range(len(reference.keys)):
        right = reference.values[i]
        if factors and i in factors:
            groups, _, width = right.shape
            right = right * factors[i].reshape(groups, 1, width)
        keys = _relative(reference.keys[i], subject.keys[i])
        found.append(LayerDifference(i, keys, _relative(right, subject.values[i])))
    return found


def _relative(a: Floats, b: Floats) -> float:
    difference = np.linalg.norm(a.astype(np.float64) - b)
    return float(difference / max(np.linalg.norm(a.astype(np.float64)), np.finfo(np.float32).tiny))


def _log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    shifted: Any = logits.astype(np.float64) - logits.max()
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def _top(logits: Floats) -> set[int]:
    count = min(_TOP, len(logits))
    return set(np.argpartition(logits, -count)[-count:].tolist())
