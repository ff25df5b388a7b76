"""What the hub answers to an upload, said in a sentence with its remedy."""

from __future__ import annotations

from edgezoo_core.errors import PublishError, plain

_TOKENS = "https://huggingface.co/settings/tokens"


def explain(error: Exception, repo: str) -> PublishError:
    """Turns an exception of huggingface_hub into a sentence with its remedy. Most special first.

    Args:
        error: What the client raised; a failed transfer of a file comes wrapped.
        repo: Where it was to go.
    """
    import httpx2  # huggingface_hub's own client
    from huggingface_hub import errors
    from huggingface_hub.constants import ENDPOINT

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    # What the storage answers says nothing about the repo.
    is_hubs = response is not None and str(response.request.url).startswith(ENDPOINT)
    answer = status if is_hubs else None
    said = plain(getattr(error, "server_message", None) or "")
    said = f": {said}" if said else ""
    again = "run the command again: nothing of it is to be seen yet, and files that the hub already"
    again += " has are not sent twice"
    table: list[tuple[bool, str, str]] = [
        (
            isinstance(error, errors.OfflineModeIsEnabled),
            "the hub is not asked while HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE, or pass --dry-run",
        ),
        (
            answer == 401,
            f"the hub does not accept your token (asked for {repo})",
            "run: hf auth login (or correct HF_TOKEN)",
        ),
        (
            answer == 403,
            f"your token may not write to {repo}{said}",
            f"use one with write access ({_TOKENS}), or propose it with --pull-request",
        ),
        (
            answer == 402,
            f"the hub wants to be paid for this{said}",
            "see the plan and the storage of the account",
        ),
        (
            answer == 409,
            f"the name {repo} is taken, but by no model that your token can see{said}",
            "choose another name",
        ),
        (
            answer == 412,
            f"{repo} was changed by somebody else meanwhile",
            "look at what changed, and run the command again",
        ),
        (
            isinstance(error, errors.RepositoryNotFoundError),
            f"the hub has no model {repo}, or it is private",
            "check the spelling, or use a token that can see it",
        ),
        (
            isinstance(error, errors.HFValidationError),
            f"{repo!r} is no valid repo name",
            "write org/name: letters, digits, `-`, `_` and `.`",
        ),
        (
            isinstance(error, httpx2.TransportError | OSError) and status is None,
            f"the upload to {repo} failed ({type(error).__name__})",
            again,
        ),
    ]
    for applies, message, remedy in table:
        if applies:
            return PublishError(message, remedy=remedy)
    detail = f"status {status}{said}" if status else f"{type(error).__name__}: {plain(str(error))}"
    return PublishError(f"the upload to {repo} failed ({detail})", remedy=again)
