"""What a model loses over several passages, each read token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgezoo_core.verification import measures, runs
from edgezoo_core.verification.runs import Floats, Passage

#: From a passage to a model's logits behind each of its tokens, float32 [P, V].
Reader = Callable[[Passage], Floats]

#: What files are examined on that were made to keep a promise: nothing is calibrated on it.
HELD_OUT = Path(__file__).with_name("held_out.txt")
#: Tokens of a passage, and how many are read.
TOKENS, PASSAGES = 257, 8


@dataclass(frozen=True, slots=True)
class Lost:
    """A model's loss over all passages.

    Attributes:
        positions: Next tokens that were compared.
        mean_kl: In nats, from the reference's probabilities to the model's.
        top1: Share where the likeliest token is the same.
        perplexity: The model's, of the passages.
        reference_perplexity: The reference's.
    """

    positions: int
    mean_kl: float
    top1: float
    perplexity: float
    reference_perplexity: float

    @property
    def ppl_increase(self) -> float:
        """By which share the perplexity grows."""
        return self.perplexity / self.reference_perplexity - 1


def examine(passages: Sequence[Passage], right: Sequence[Floats], read: Reader) -> Lost:
    """Lets a model read passages, and compares its logits with the reference's.

    Args:
        passages: What is read.
        right: The reference's logits of each, float32 [P, V].
        read: The model.
    """
    losses = [
        measures.loss(logits, read(passage), passage.tokens[passage.start :])
        for passage, logits in zip(passages, right, strict=True)
    ]
    weights = [loss.positions for loss in losses]
    return Lost(
        sum(weights),
        float(np.average([loss.mean_kl for loss in losses], weights=weights)),
        float(np.average([loss.top1 for loss in losses], weights=weights)),
        float(np.exp(np.mean([np.log(loss.subject_perplexity) for loss in losses]))),
        float(np.exp(np.mean([np.log(loss.reference_perplexity) for loss in losses]))),
    )


def logits(folder: Path) -> Floats:
    """Returns the logits of a run that was left in a folder, float32 [P, V]."""
    return np.array(runs.load(folder).logits)
