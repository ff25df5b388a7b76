"""What the hub answers to an upload, said in a sentence with its remedy."""

from __future__ import annotations

from http import HTTPStatus

from edgezoo_core import hub_errors
from edgezoo_core.errors import PublishError

_TOKENS = "https://huggingface.co/settings/tokens"
_AGAIN = (
    "run the command again: nothing of it is to be seen yet, and files that the hub already has are"
    " not sent twice"
)


def explain(error: Exception, repo: str) -> PublishError:
    """Turns an exception of huggingface_hub into a sentence with its remedy.

    Args:
        error: What the client raised; a failed transfer of a file comes wrapped.
        repo: Where it was to go.
    """
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    answer, said = hub_errors.hubs_status(error), hub_errors.server_words(error)
    faults: list[hub_errors.Fault] = [
        (
            answer == HTTPStatus.FORBIDDEN,
            f"your token may not write to {repo}{said}",
            f"use one with write access ({_TOKENS}), or propose it with --pull-request",
        ),
        (
            answer == HTTPStatus.PAYMENT_REQUIRED,
            f"the hub wants to be paid for this{said}",
            "see the plan and the storage of the account",
        ),
        (
            answer == HTTPStatus.CONFLICT,
            f"the name {repo} is taken, but by no model that your token can see{said}",
            "choose another name",
        ),
        (
            answer == HTTPStatus.PRECONDITION_FAILED,
            f"{repo} was changed by somebody else meanwhile",
            "look at what changed, and run the command again",
        ),
        *hub_errors.common(error, repo),
        (
            True,
            hub_errors.failed(f"the upload to {repo}", error),
            _AGAIN,
        ),
    ]
    return hub_errors.first(PublishError, faults)
