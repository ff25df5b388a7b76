"""The artifact itself reads a passage, token by token, with the LiteRT runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgezoo_core.runtime import Session
from edgezoo_core.types import Progress, silent
from edgezoo_core.verification import runs
from edgezoo_core.verification.runs import Passage


def score(session: Session, passage: Passage, folder: Path, progress: Progress = silent) -> None:
    """Reads a passage, the beginning by prefill and the rest by decode.

    Args:
        session: The artifact; its cache is emptied first.
        passage: What it reads.
        folder: Where logits, keys and values go (see `runs.Run`).
        progress: Told how far it is, in tokens.
    """
    session.reset()
    first = session.feed(passage.tokens[: passage.start])
    logits = runs.create(folder, "logits", (passage.scored, len(first)))
    logits[0] = first
    for number, token in enumerate(passage.tokens[passage.start :], 1):
        logits[number] = session.feed([token])
        progress.advance(number, passage.scored - 1)
    logits.flush()
    _keep_cache(session, len(passage.tokens), folder)


def continuations(
    session: Session, prompts: Sequence[Sequence[int]], count: int, vocabulary: int | None
) -> list[list[int]]:
    """Returns what the artifact says after each prompt, greedily, `count` tokens each."""
    answers = []
    for prompt in prompts:
        session.reset()
        answers.append(list(session.generate(prompt, count, vocabulary=vocabulary)))
    return answers


def _keep_cache(session: Session, used: int, folder: Path) -> None:
    cache, layout = session.cache(), session.decoder.cache
    axes = ((1, 0, 2), (1, 0, 2)) if layout.is_default_layout else ((0, 1, 2), (0, 2, 1))
    for kind, name, order in zip("kv", ("keys", "values"), axes, strict=True):
        layers = (cache[f"kv_cache_{kind}_{i}"][0] for i in range(layout.layers))
        blocks = [layer.transpose(order)[:, :used] for layer in layers]
        kept = runs.create(folder, name, (len(blocks), *blocks[0].shape))
        for number, block in enumerate(blocks):
            kept[number] = block
        kept.flush()
