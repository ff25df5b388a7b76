"""Everything edgezoo raises on purpose: what is wrong, where, and how to mend it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

#: Faults of a disk that is written to; any other OSError while a file is made has another cause.
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}

#: A message lists at most so many names; the rest is a count.
LONGEST_LIST = 10


class EdgezooError(Exception):
    """A fault that the user can mend.

    Args:
        message: What happened, where, and found against expected.
        remedy: The command to run or the decision to take.
    """

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class CardError(EdgezooError):
    """A `models.toml` or `registry.toml` does not say what it must."""


class PluginError(EdgezooError):
    """A plugin is missing, broken, or answered a hook with the wrong thing."""


class TargetError(EdgezooError):
    """The target names nothing that can be converted, or more than one thing."""


class CheckpointError(EdgezooError):
    """A checkpoint cannot be obtained, read, or mapped."""


class ConfigError(CheckpointError):
    """A `config.json` says something that the family does not implement."""


class RecipeError(EdgezooError):
    """A quantization recipe is unknown, malformed, or does not fit the model."""


class ConversionError(EdgezooError):
    """The model cannot be converted with these options, or the result is not what was asked."""


class CacheError(EdgezooError):
    """The cache cannot be used; a conversion can do without."""


class ArtifactError(EdgezooError):
    """An artifact cannot be written, read, or run."""


class VerificationError(EdgezooError):
    """An artifact cannot be held against its source."""


class PublishError(EdgezooError):
    """An artifact must not, or cannot, be published."""


class EvaluationError(EdgezooError):
    """A task is not known, cannot be loaded, or asks for what a converted file cannot do."""


def listing(names: Iterable[str]) -> str:
    """Returns the names joined by commas, cut at `LONGEST_LIST` with a count of the rest."""
    names = list(names)
    shown = ", ".join(names[:LONGEST_LIST])
    rest = len(names) - LONGEST_LIST
    return f"{shown} and {rest} more" if rest > 0 else shown


def plain(text: str) -> str:
    """Returns a text without what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, known: Collection[str]) -> str | None:
    """Returns the known name that looks most like `name`, or None if none does."""
    import difflib  # only a mistake pays for it

    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return matches[0] if matches else None
