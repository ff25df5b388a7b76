"""The hub: whether it answers, and whether it knows the token. The token itself is never shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from edgezoo_core import hub_session
from edgezoo_core.doctor.finding import Finding
from edgezoo_core.errors import plain

#: Variables that change what huggingface_hub does, and say nothing secret.
_VARIABLES = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET")


def examine(*, is_offline: bool) -> Iterator[Finding]:
    """Asks the hub who the token belongs to.

    Args:
        is_offline: Whether it must not be asked.
    """
    from huggingface_hub import constants, get_token

    set_here = [f"{n}={os.environ[n]}" for n in _VARIABLES if os.environ.get(n)]
    if set_here:
        remedy = "unset what you did not set on purpose"
        yield Finding("note", "hub settings", plain(", ".join(set_here)), remedy)
    endpoint = plain(constants.ENDPOINT)
    if is_offline:
        return
    if constants.is_offline_mode():
        found = f"{endpoint} is not asked: HF_HUB_OFFLINE is set"
        yield Finding("note", "hub", found, "unset HF_HUB_OFFLINE to download models")
        return
    token = get_token()
    if token and urlsplit(constants.ENDPOINT).scheme != "https" and not _is_local():
        found = f"{endpoint} would get your token unencrypted"
        yield Finding("error", "hub", found, "set HF_ENDPOINT to an https:// address")
        return
    yield from _ask(endpoint, token)


def _ask(endpoint: str, token: str | None) -> Iterator[Finding]:
    import httpx2  # huggingface_hub's own client
    from huggingface_hub import get_session
    from huggingface_hub.constants import ENDPOINT, HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.utils._headers import build_hf_headers

    remedy = "check the connection, the proxy (HTTPS_PROXY) and HF_ENDPOINT"
    remedy += "; a folder can be converted without it"
    try:
        with hub_session.guarded():
            # No redirect is followed: the token is for this address alone.
            answer = get_session().get(
                f"{ENDPOINT}/api/whoami-v2",
                headers=build_hf_headers(token=token or False),
                timeout=HF_HUB_ETAG_TIMEOUT,
                follow_redirects=False,
            )
    except hub_session.WebPageError:
        yield Finding("error", "hub", f"{endpoint} answers with a web page", remedy)
        return
    except (hub_session.PassingError, httpx2.HTTPError, httpx2.InvalidURL, ValueError) as e:
        fault = hub_session.as_passing(e) or f"cannot be reached ({type(e).__name__})"
        yield Finding("error", "hub", plain(f"{endpoint}: {fault}"), remedy)
        return
    status = answer.status_code
    if 300 <= status < 400 or status in (404, 501, 505):
        remedy = "try again later, or check HF_ENDPOINT"
        yield Finding("error", "hub", f"{endpoint} answers {status}", remedy)
        return
    yield Finding("ok", "hub", f"{endpoint} answers")
    if token is None:
        remedy = "for gated models and for `publish`, run: hf auth login"
        yield Finding("note", "token", "none", remedy)
    elif status != 200:
        remedy = "run: hf auth login (or correct HF_TOKEN)"
        yield Finding("error", "token", f"the hub does not accept it (status {status})", remedy)
    else:
        yield _token(answer)


def _token(answer: Any) -> Finding:
    try:
        found = answer.json()
        name = plain(str(found["name"]))
        role = found.get("auth", {}).get("accessToken", {}).get("role", "")
    except (ValueError, KeyError, TypeError, AttributeError):
        remedy = "check HF_ENDPOINT: it does not answer as the hub does"
        return Finding("error", "token", "the answer of the hub cannot be read", remedy)
    if role == "read":
        remedy = "for `publish`, use one with write access"
        return Finding("ok", "token", f"of {name}, may read", remedy)
    return Finding("ok", "token", f"of {name}" + (f", {plain(str(role))}" if role else ""))


def _is_local() -> bool:
    from huggingface_hub.constants import ENDPOINT

    return urlsplit(ENDPOINT).hostname in ("localhost", "127.0.0.1", "::1")
