"""What the hub's client raises, said in a sentence with its remedy.

Faults are told from a table, the most special first. What an upload alone meets stands in
`edgezoo_core.publishing.faults`.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TypeVar

from edgezoo_core import hub_session
from edgezoo_core.errors import DISK_FAULTS, CheckpointError, EdgezooError, plain

#: Where a URL may hold a password.
_USERINFO = re.compile(r"(?<=://)[^/\s]+@")

_Error = TypeVar("_Error", bound=EdgezooError)

#: Whether it applies, what is wrong, and what to do.
Fault = tuple[bool, str, str]


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
    """Returns what an exception of the client says about a download."""
    from huggingface_hub import errors, get_token
    from huggingface_hub.constants import ENDPOINT

    page = f"{without_secrets(ENDPOINT)}/{repo}"
    doing = f"the download of {repo}@{revision}"
    patience = f"{hub_session.PATIENCE}=SECONDS sets the longest wait for the hub"
    number = error.errno if isinstance(error, OSError) else None
    faults: list[Fault] = [
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
        *common(error, repo),
        (
            isinstance(error, errors.LocalEntryNotFoundError),
            f"{doing} failed: the hub cannot be reached",
            "check the connection and run the command again",
        ),
        (
            isinstance(error, errors.EntryNotFoundError),
            f"{repo}@{revision}: a file of the list is not there",
            "run the command again, or choose another --revision",
        ),
        (
            isinstance(error, hub_session.GaveUpError),
            f"{doing} failed: {error}",
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
        (
            True,
            failed(doing, error),
            "run the command again; if it persists, see the hub's status page",
        ),
    ]
    kind = GatedError if isinstance(error, errors.GatedRepoError) else CheckpointError
    return first(kind, faults)


def first(kind: type[_Error], faults: Iterable[Fault]) -> _Error:
    """Returns the error for the first fault that applies; the last one has to."""
    message, remedy = next((message, remedy) for applies, message, remedy in faults if applies)
    return kind(message, remedy=remedy)


def common(error: Exception, repo: str) -> list[Fault]:
    """Returns what means the same whether files come or go."""
    from huggingface_hub import errors, get_token

    return [
        (
            isinstance(error, errors.OfflineModeIsEnabled),
            "the hub is not asked while HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE",
        ),
        (
            hubs_status(error) == HTTPStatus.UNAUTHORIZED and get_token() is not None,
            f"the hub does not accept your token (asked for {repo})",
            "run: hf auth login (or correct HF_TOKEN)",
        ),
        (
            isinstance(error, errors.RepositoryNotFoundError),
            f"the hub has no model {repo}, or it is private",
            "check the spelling; for a private one, run: hf auth login",
        ),
        (
            isinstance(error, errors.HFValidationError),
            f"{repo!r} is no valid repo name",
            "write org/name: letters, digits, `-`, `_` and `.`",
        ),
    ]


def failed(doing: str, error: Exception) -> str:
    """Returns that something failed, and all that is known of the cause."""
    if fault := hub_session.as_passing(error):
        return f"{doing} failed: {fault}"
    status = _status(error)
    cause = (
        f"status {status}{server_words(error)}" if status else f"{type(error).__name__}: {error}"
    )
    return f"{doing} failed ({plain(without_secrets(cause))})"


def hubs_status(error: Exception) -> int | None:
    """Returns the status that the hub itself answered; its storage's says nothing of the repo."""
    response = getattr(error, "response", None)
    is_hubs = response is not None and hub_session.is_hub(response.request.url)
    return _status(error) if is_hubs else None


def server_words(error: Exception) -> str:
    """Returns the server's own words, to stand behind ours; nothing where it said nothing."""
    words = getattr(error, "server_message", None)
    return f": {plain(words)}" if words else ""


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def without_secrets(text: str) -> str:
    """Returns a text without the hub's token and without the passwords of its URLs."""
    from huggingface_hub import get_token

    text = _USERINFO.sub("", text)
    token = get_token()
    return text.replace(token, "(token)") if token else text
