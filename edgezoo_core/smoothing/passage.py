"""The text that a model is calibrated on, as its tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from edgezoo_core import texts
from edgezoo_core import tokenizer as tokenizers
from edgezoo_core.errors import ArtifactError, CalibrationError

#: What is read where the user names no text.
SAMPLE = Path(__file__).with_name("calibration.txt")
#: Tokens that are read, where the model's context has room for them.
TOKENS = 1024
#: Fewer tokens say nothing of a model's channels.
FEWEST = 64
_LONGEST_BYTES = 1 << 24


def read(path: Path | None) -> str:
    """Returns the text of a file, or the carried one.

    Raises:
        CalibrationError: It cannot be read.
    """
    where = path or SAMPLE
    try:
        return texts.read(where, _LONGEST_BYTES)
    except (OSError, ValueError) as e:
        raise CalibrationError(
            f"the calibration text {where} cannot be read: {e}", remedy="name a text file"
        ) from e


def tokens(text: str, folder: Path, vocabulary: int, longest: int) -> list[int]:
    """Returns a text as tokens: its first half as a conversation, where the model has them.

    Args:
        text: Paragraphs, with empty lines between them.
        folder: Where the source's tokenizer is; without one, ids are made up.
        vocabulary: How many ids the model knows.
        longest: The model's context.

    Raises:
        CalibrationError: The text is too short.
    """
    wanted = min(TOKENS, longest)
    if not any((folder / name).is_file() for name in tokenizers.FILES):
        made_up = random.Random(1)  # noqa: S311 - no secret
        return made_up.choices(range(vocabulary), k=wanted)
    tokenizer = tokenizers.load(folder)
    paragraphs = [f"{p.strip()}\n\n" for p in text.split("\n\n") if p.strip()]
    found = _conversation(tokenizer, paragraphs)[: wanted // 2]
    plain = tokenizer.encode("".join(paragraphs[len(paragraphs) // 2 :]))
    found += plain[: wanted - len(found)]
    if len(found) < min(FEWEST, wanted):
        raise CalibrationError(
            f"the calibration text gives {len(found)} tokens, {FEWEST} are needed",
            remedy="name a longer one",
        )
    return found


def _conversation(tokenizer: tokenizers.Tokenizer, paragraphs: Sequence[str]) -> list[int]:
    half = paragraphs[: max(1, len(paragraphs) // 2)]
    roles = ("user", "assistant")
    # An odd number: a conversation ends with a question.
    spoken = half[: len(half) - 1 + len(half) % 2] or half
    messages = [{"role": roles[i % 2], "content": text.strip()} for i, text in enumerate(spoken)]
    try:
        return tokenizer.conversation(messages)
    except ArtifactError:  # its template takes other conversations
        return tokenizer.encode("".join(half))
