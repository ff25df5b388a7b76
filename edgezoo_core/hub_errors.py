"""What the hub's client raises, said in a sentence with its remedy."""

from __future__ import annotations

from edgezoo_core.errors import CheckpointError


def explain(error: Exception, repo: str, revision: str) -> CheckpointError:
    """Turns an exception of the client into a sentence with its remedy. Most special first."""
    from huggingface_hub import errors, get_token
    from huggingface_hub.constants import ENDPOINT

    page = f"{ENDPOINT}/{repo}"
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
            isinstance(error, OSError) and getattr(error, "errno", None) == 28,
            f"no space left on the disk of the cache while downloading {repo}",
            "free some space, or set HF_HOME to another disk",
        ),
    ]
    for applies, message, remedy in table:
        if applies:
            return CheckpointError(message, remedy=remedy)
    detail = f"status {status}" if status else f"{type(error).__name__}: {error}"
    return CheckpointError(
        f"the download of {repo}@{revision} failed ({detail})",
        remedy="run the command again; if it persists, see the hub's status page",
    )
