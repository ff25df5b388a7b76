"""Everything edgezoo raises on purpose: what is wrong, where, and how to mend it."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

#: Faults of a disk that is written to; any other OSError while a file is made has another cause.
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}

#: Faults of a path that the user named, or of the machine, with what to do about them.
_SYSTEM_FAULTS = {
    **dict.fromkeys(DISK_FAULTS, "free some space there, or choose another disk"),
    errno.EACCES: "check the permissions, or choose another path",
    errno.EPERM: "check the permissions, or choose another path",
    errno.ENOENT: "check the path; a folder may have been removed meanwhile",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.ELOOP: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs, or use a machine with more memory",
    errno.EAGAIN: "raise the limit of processes: ulimit -u",
}
#: How libraries say that memory ran out.
_NO_MEMORY = (
    "bad_alloc",
    "MemoryError",
    "annot allocate memory",
    "can't allocate memory",
    "out of memory",
    "RESOURCE_EXHAUSTED",
    "failed to map segment",
)
#: How LLVM says that a disk is full, before it aborts.
_NO_SPACE = "IO failure on output stream: "

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


class CalibrationError(EdgezooError):
    """A model cannot be calibrated: its text is missing or too short."""


class VerificationError(EdgezooError):
    """An artifact cannot be held against its source."""


class BatchError(EdgezooError):
    """A matrix does not say what it must, or its store or cluster cannot be used."""


class PublishError(EdgezooError):
    """An artifact must not, or cannot, be published."""


class EvaluationError(EdgezooError):
    """A task is not known, cannot be loaded, or asks for what a converted file cannot do."""


def of_system(fault: OSError | MemoryError) -> EdgezooError | None:
    """Returns what a fault of the disk or the machine says to the user; None for any other."""
    if isinstance(fault, MemoryError):
        return out_of_memory("edgezoo")
    remedy = _SYSTEM_FAULTS.get(fault.errno or 0)
    if remedy is None:
        return None
    where = f"{fault.filename}: " if fault.filename else ""
    return EdgezooError(f"{where}{fault.strerror}", remedy=remedy)


def out_of_memory(who: str) -> ConversionError:
    """Returns the error for a process whose memory ran out."""
    return ConversionError(
        f"memory ran out in {who}",
        remedy="close other programs, pass --jobs 1, or use a machine with more memory",
    )


def tells_out_of_memory(text: str) -> bool:
    """Says whether the last words of a process, or of a library, are that memory ran out."""
    return any(words in text for words in _NO_MEMORY)


def tells_full_disk(text: str) -> str | None:
    """Returns what the last words of a process say about a disk that it could not write to."""
    _, found, reason = text.partition(_NO_SPACE)
    return reason.partition("\n")[0] if found else None


def listing(names: Iterable[str]) -> str:
    """Returns the names joined by commas, cut at `LONGEST_LIST` with a count of the rest."""
    names = list(names)
    shown = ", ".join(names[:LONGEST_LIST])
    rest = len(names) - LONGEST_LIST
    return f"{shown} and {rest} more" if rest > 0 else shown


def plain(text: str) -> str:
    """Returns a text without what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


#: Control characters but newline and tab, halves of surrogate pairs, what turns the direction of
#: text (CVE-2021-42574), and tags that nobody sees. Joiners, marks and blanks of scripts stay.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def tame(text: str) -> str:
    """Returns a text of several lines without what a terminal would obey.

    Unlike `plain`, for text that is more than a name: an answer, a message.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def nearest(name: str, known: Collection[str]) -> str | None:
    """Returns the known name that looks most like `name`, or None if none does."""
    import difflib  # only a mistake pays for it

    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return matches[0] if matches else None
