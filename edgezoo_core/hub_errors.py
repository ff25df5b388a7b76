"""What the hub's client raises, said in a sentence with its remedy."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from edgezoo_core import hub_session
from edgezoo_core.errors import DISK_FAULTS, CheckpointError, EdgezooError

#: Where a URL may hold a password.
_USERINFO = re.compile(r"(?<=://)[^/\s]+@")


class GatedError(CheckpointError):
    """The repo is gated, and this user has no access."""


@contextmanager
def explained(repo: str, revision: str) -> Iterator[None]:
    """Turns what the client raises meanwhile into a sentence with its remedy.

    Raises:
        GatedError: The repo is gated, and this user has no access.
        CheckpointError: Anything else; what edgezoo raised itself stays as it is.
    """
    try:
        yield
    except EdgezooError:
        raise
    except Exception as e:
        raise explain(e, repo, revision) from e


def explain(error: Exception, repo: str, revision: str) -> CheckpointError:
    """Turns an exception of the client into a sentence with its remedy. Most special first."""
    from huggingface_hub import errors, get_token
    from huggingface_hub.constants import ENDPOINT

    page = f"{without_secrets(ENDPOINT)}/{repo}"
    patience = f"{hub_session.PATIENCE}=SECONDS sets the longest wait for the hub"
    number = error.errno if isinstance(error, OSError) else None
    status = getattr(getattr(error, "response", None), "status_code", None)
    table: list[tuple[bool, str, str]] = [
        (
            isinstance(error, errors.GatedRepoError),
            f"{repo} is gated, and "
            + ("your account has no access" if get_token() else "you are not logged in"),
            f"accept the licence on {page}, then run: hf auth login",
        ),
        (
            isinstance(error, errors.RevisionNotFoundError),
            f"{repo} has no revision {revision!r}",
            f"choose a branch, tag or commit from {page}/commits",
        ),
        (
            status == 401 and get_token() is not None,
            f"the hub does not accept your token (asked for {repo})",
            "run: hf auth login (or correct HF_TOKEN)",
        ),
        (
            isinstance(error, errors.RepositoryNotFoundError),
            f"the hub has no model {repo}, or it is private",
            "check the spelling; for a private one, run: hf auth login",
        ),
        (
            isinstance(error, errors.LocalEntryNotFoundError),
            f"the download of {repo}@{revision} failed: the hub cannot be reached",
            "check the connection and run the command again",
        ),
        (
            isinstance(error, errors.EntryNotFoundError),
            f"{repo}@{revision}: a file of the list is not there",
            "run the command again, or choose another --revision",
        ),
        (
            isinstance(error, errors.HFValidationError),
            f"{repo!r} is no valid repo name",
            "write org/name",
        ),
        (
            isinstance(error, hub_session.GaveUpError),
            f"the download of {repo}@{revision} failed: {error}",
            f"run the command again: it continues where this one stopped ({patience})",
        ),
        (
            isinstance(error, hub_session.WebPageError | json.JSONDecodeError | UnicodeDecodeError),
            f"a web page or the like came in place of what was asked of the hub ({repo})",
            "log in to this network if it has a login page, check HF_ENDPOINT and the proxy",
        ),
        (
            number in (errno.ENOSPC, errno.EDQUOT),
            f"no space left on the disk of the cache while downloading {repo}",
            "free some space and run the command again: it continues where this one stopped",
        ),
        (
            number in DISK_FAULTS or number in (errno.EACCES, errno.EPERM, errno.ENOTDIR),
            f"the cache of huggingface_hub cannot be written: {without_secrets(str(error))}",
            "set HF_HOME to a folder that can be written",
        ),
    ]
    kind = GatedError if isinstance(error, errors.GatedRepoError) else CheckpointError
    for applies, message, remedy in table:
        if applies:
            return kind(message, remedy=remedy)
    detail = f"status {status}" if status else f"{type(error).__name__}: {error}"
    detail = without_secrets(detail)
    return CheckpointError(
        f"the download of {repo}@{revision} failed ({detail})",
        remedy="run the command again; if it persists, see the hub's status page",
    )


def without_secrets(text: str) -> str:
    """Returns a text without the hub's token and without the passwords of its URLs."""
    from huggingface_hub import get_token

    text = _USERINFO.sub("", text)
    token = get_token()
    return text.replace(token, "(token)") if token else text
