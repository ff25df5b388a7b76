"""The text that a model is calibrated on, as its tokens."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

from edgezoo_core import texts
from edgezoo_core import tokenizer as tokenizers
from edgezoo_core.errors import ArtifactError, CalibrationError

#: What is read where the user names no text.
SAMPLE = Path(__file__).with_name("calibration.txt")
#: Tokens of a passage, where the model's context has room for them, and how many are read where
#: one is not enough.
TOKENS, PASSAGES = 1024, 4
#: Fewer tokens say nothing of a model's channels.
FEWEST = 64
_LONGEST_BYTES = 1 << 24


def read(path: Path | None, carried: Path = SAMPLE) -> str:
    """Returns the text of a file, or a carried one.

    Raises:
        CalibrationError: It cannot be read.
    """
    where = path or carried
    try:
        return texts.read(where, _LONGEST_BYTES)
    except (OSError, ValueError) as e:
        raise CalibrationError(
            f"the text {where} cannot be read: {e}", remedy="name a text file"
        ) from e


def digest(text: str) -> str:
    """Returns the sha256 of a text in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def tokens(
    text: str, folder: Path, vocabulary: int, longest: int, *, count: int = TOKENS
) -> list[int]:
    """Returns a text as one passage: its first half as a conversation, where the model has them.

    Args:
        text: Paragraphs, with empty lines between them.
        folder: Where the source's tokenizer is; without one, ids are made up.
        vocabulary: How many ids the model knows.
        longest: The model's context.
        count: How many tokens, where the context has room for them.

    Raises:
        CalibrationError: The text is too short.
    """
    wanted = min(count, longest)
    spoken, plain = _halves(text, folder) or (_made_up(text, vocabulary, wanted), [])
    found = spoken[: wanted // 2] if plain else spoken
    found += plain[: wanted - len(found)]
    _refuse_short(found, wanted)
    return found


def passages(
    text: str,
    folder: Path,
    vocabulary: int,
    longest: int,
    *,
    length: int = TOKENS,
    count: int = PASSAGES,
) -> list[list[int]]:
    """Returns a text as some passages, as many of them conversation as plain text.

    Args:
        text: As `tokens` takes it, with the other arguments.
        folder: As there.
        vocabulary: As there.
        longest: As there.
        length: Tokens of a passage, where the context has room for them.
        count: How many passages at most.

    Raises:
        CalibrationError: The text is too short.
    """
    wanted = min(length, longest)
    spoken, plain = _halves(text, folder) or (_made_up(text, vocabulary, count * wanted), [])
    half = count // 2 if plain else count
    found = [*_cut(spoken, wanted)[:half], *_cut(plain, wanted)[:half]]
    _refuse_short(max(found, key=len, default=[]), wanted)
    return [p for p in found if len(p) >= min(FEWEST, wanted)]


def _cut(found: Sequence[int], length: int) -> list[list[int]]:
    return [list(found[i : i + length]) for i in range(0, len(found), length)]


def _made_up(text: str, vocabulary: int, count: int) -> list[int]:
    return random.Random(text).choices(range(vocabulary), k=count)  # noqa: S311 - no secret


def _refuse_short(found: Sequence[int], wanted: int) -> None:
    if len(found) < min(FEWEST, wanted):
        raise CalibrationError(
            f"the text gives {len(found)} tokens, {FEWEST} are needed",
            remedy="name a longer one",
        )


def _halves(text: str, folder: Path) -> tuple[list[int], list[int]] | None:
    """Returns the conversation and the plain text as tokens; None without a tokenizer."""
    if not any((folder / name).is_file() for name in tokenizers.FILES):
        return None
    tokenizer = tokenizers.load(folder)
    paragraphs = [f"{p.strip()}\n\n" for p in text.split("\n\n") if p.strip()]
    plain = tokenizer.encode("".join(paragraphs[len(paragraphs) // 2 :]))
    return _conversation(tokenizer, paragraphs), plain


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
