"""Questions to the hub that come to an end: each wait is shown and has a limit.

The client of huggingface_hub, left alone, sleeps for as long as a server's `Retry-After` says,
asks again without a word, and sends the token to every origin that it takes for a hub. Here
(`guarded`) one call of it asks each question once, a passing fault ends the call at the first
answer, and the token goes to the origin of HF_ENDPOINT alone, whatever redirects say. `patiently`
asks again, tells the user that it waits, and gives up in the end.

No question waits longer for the next bytes of an answer than HF_HUB_ETAG_TIMEOUT says (where the
hub has to compute it, three times that, 30 s at most), and no part of a file longer than
HF_HUB_DOWNLOAD_TIMEOUT: 10 s each, if they are not set. From its first byte to its last an answer
may take three times that. A file may take longer (`steady`), if it brings 1 kB/s meanwhile.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from edgezoo_core.errors import CheckpointError
from edgezoo_core.types import Progress

if TYPE_CHECKING:
    import httpx2  # huggingface_hub's own client

_Result = TypeVar("_Result")

#: How often a question is asked, or a download continued without getting further.
TRIES = 5
#: Bytes that a try of a download must bring to count as getting further.
FURTHER_BYTES = 64 * 1024
#: How often the time of one silence an answer may take in all.
IN_ALL = 3
#: What a large answer must bring, to be given that time again.
SLOWEST_BYTES_PER_S = 1000
#: Names the longest single wait for the hub, in seconds.
PATIENCE = "EDGEZOO_HUB_PATIENCE"
#: The hub counts requests in windows of five minutes.
DEFAULT_PATIENCE_S = 300.0

#: Answers of a server that may answer otherwise a little later.
_PASSING = {408, 429, *range(500, 600)} - {501, 505}


class PassingError(Exception):
    """No answer, or one that says to come again.

    Args:
        who: Whose fault it is, as the subject of a sentence.
        said: What it did, as the predicate.

    Attributes:
        retry_after_s: Seconds that it asks to wait.
        is_worth_waiting: Whether there is somebody to wait for.
    """

    def __init__(
        self,
        who: str,
        said: str,
        *,
        retry_after_s: int | None = None,
        is_worth_waiting: bool = True,
    ) -> None:
        super().__init__(f"{who} {said}")
        self.retry_after_s = retry_after_s
        self.is_worth_waiting = is_worth_waiting


class GaveUpError(Exception):
    """A fault that did not pass, and why it was not waited for any longer."""


class WebPageError(Exception):
    """A web page where no page can be: something else than the hub answered."""


def patience_s() -> float:
    """Returns the longest single wait for the hub in seconds.

    Raises:
        CheckpointError: EDGEZOO_HUB_PATIENCE is no time.
    """
    text = os.environ.get(PATIENCE, "").strip()
    try:
        seconds = float(text or DEFAULT_PATIENCE_S)
    except ValueError:
        seconds = math.nan
    if not (0 <= seconds < math.inf):
        raise CheckpointError(
            f"{PATIENCE} is {text!r}, which is no time", remedy="set it to seconds, or unset it"
        )
    return seconds


def patiently(
    call: Callable[[], _Result],
    stage: str,
    progress: Progress,
    *,
    done_bytes: Callable[[], int] = lambda: 0,
    is_enough: Callable[[PassingError], bool] = lambda fault: False,
) -> _Result:
    """Calls until no passing fault is in the way, with a wait in between that doubles.

    Args:
        call: Asks the hub; it may be called again at any time.
        stage: What it does.
        progress: Told of each wait, and then of the stage again.
        done_bytes: Gives how much there is by now. A try that got further does not count.
        is_enough: Says of a fault whether to give up at once.

    Raises:
        GaveUpError: The fault stays, is enough, or asks for more patience than there is.
        Exception: Whatever else `call` raises.
    """
    tries, longest = 1, patience_s()
    while True:
        before = done_bytes()
        try:
            with guarded():
                return call()
        except Exception as e:
            fault = as_passing(e)
            if fault is None:
                raise
            if is_enough(fault):
                raise GaveUpError(str(fault)) from e
            if done_bytes() - before >= FURTHER_BYTES:
                tries = 1
            if tries >= TRIES:
                raise GaveUpError(f"{fault} (tried {tries} times)") from e
            wait = min(2.0 ** (tries - 1), longest)
            if fault.retry_after_s is not None:
                wait = float(fault.retry_after_s)
                if wait > longest:
                    why = f"{fault} and asks to wait {wait:g} s, more than {PATIENCE}={longest:g}"
                    raise GaveUpError(why) from e
        tries += 1
        progress(f"waiting, as {fault}: try {tries} of {TRIES} in {wait:g} s")
        time.sleep(wait)
        progress(stage)


@contextmanager
def guarded() -> Iterator[None]:
    """Makes the client's session ask once, for a limited time, and keep the token to the hub.

    While the block runs, a request that the client repeats, and an answer that may be another a
    little later, raise PassingError; a web page raises WebPageError.
    """
    from huggingface_hub import get_session

    client = get_session()
    _guard.enter(client)
    try:
        yield
    finally:
        _guard.leave(client)


class _Guard:
    """What looks at each request and each answer of the client, as long as anybody asks for it.

    The client has one session for all threads, and it asks for some things in threads of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._asked: dict[int, set[tuple[str, str, str | None]]] = {}

    def enter(self, client: httpx2.Client) -> None:
        with self._lock:
            self._depth += 1
            self._asked.pop(threading.get_ident(), None)
            hooks = client.event_hooks
            if self._on_request not in hooks["request"]:
                client.event_hooks = {
                    "request": [*hooks["request"], self._on_request],
                    "response": [*hooks["response"], self._on_response],
                }

    def leave(self, client: httpx2.Client) -> None:
        with self._lock:
            self._depth -= 1
            self._asked.pop(threading.get_ident(), None)
            if not self._depth:
                self._asked.clear()
                own = (self._on_request, self._on_response)
                hooks = client.event_hooks.items()
                client.event_hooks = {kind: [h for h in hs if h not in own] for kind, hs in hooks}

    def _on_request(self, request: httpx2.Request) -> None:
        question = (request.method, str(request.url), request.headers.get("range"))
        asked = self._asked.setdefault(threading.get_ident(), set())
        if question in asked:
            raise PassingError(_who(request.url), "does not answer")
        asked.add(question)
        keep_token_home(request)
        limit_time(request)

    def _on_response(self, response: httpx2.Response) -> None:
        status = response.status_code
        if status in _PASSING:
            after = response.headers.get("retry-after", "").strip()
            raise PassingError(
                _who(response.request.url),
                f"answers with status {status}",
                # A date, the other form, is as good as nothing: clocks differ.
                retry_after_s=int(after) if after.isdecimal() else None,
            )
        kind = response.headers.get("content-type", "")
        if response.is_success and kind.lower().startswith(("text/html", "application/xhtml")):
            raise WebPageError


_guard = _Guard()


class _TimeLeft:
    """The timeout of one answer, which is less the longer the answer takes.

    The client's own limits each read, and so a server that sends a byte now and then is read from
    for days. The client hands this one on to the socket as it is, which asks for its value before
    each read.
    """

    def __init__(self, who: str, silence_s: float) -> None:
        self.who = who
        self.in_all_s = IN_ALL * silence_s
        self._silence_s = silence_s
        self._ends: float | None = None

    def renew(self) -> None:
        """Lets the time begin anew with the next read."""
        self._ends = None

    def __index__(self) -> int:
        """Returns the seconds that the next read may take.

        Raises:
            PassingError: There are none left.
        """
        now = time.monotonic()
        if self._ends is None:  # not before: what is sent to the hub may be long
            self._ends = now + self.in_all_s
        if now >= self._ends:
            raise PassingError(self.who, "sends next to nothing")
        return math.ceil(min(self._silence_s, self._ends - now))


def limit_time(request: httpx2.Request) -> None:
    """Limits the time that the whole answer may take, its headers included."""
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    timeouts = request.extensions.get("timeout", {})
    left = timeouts.get("read") or HF_HUB_ETAG_TIMEOUT
    if isinstance(left, _TimeLeft):  # the request of a redirect
        left.who = _who(request.url)
    else:
        left = _TimeLeft(_who(request.url), left)
    request.extensions["timeout"] = {**timeouts, "read": left}


def steady(response: httpx2.Response) -> Iterator[bytes]:
    """Passes on what comes of a large answer, as long as it is more than a trickle.

    Raises:
        PassingError: In the time of a small answer, less than 1 kB/s came.
    """
    left: _TimeLeft = response.request.extensions["timeout"]["read"]
    received = 0
    for chunk in response.iter_bytes():
        yield chunk
        received += len(chunk)
        if received >= SLOWEST_BYTES_PER_S * left.in_all_s:
            left.renew()
            received = 0


def as_passing(error: Exception) -> PassingError | None:
    """Returns what is to be said of a fault that may pass, None if it will not."""
    import httpx2

    if isinstance(error, PassingError):
        return error
    if isinstance(error, httpx2.ProxyError):
        return PassingError("the proxy", "does not let through", is_worth_waiting=False)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        said = f"cannot be reached ({str(error) or 'no answer'})"
        return PassingError(_who(error.request.url), said, is_worth_waiting=False)
    if isinstance(error, httpx2.TimeoutException):
        return PassingError(_who(error.request.url), "has gone silent")
    if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return PassingError(_who(error.request.url), "broke the connection off")
    return None


def refuse_odd_token() -> None:
    """Refuses a token that no header can carry; the client's complaint would show it.

    Raises:
        CheckpointError: There is one.
    """
    from huggingface_hub import get_token

    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):
        raise CheckpointError(
            "the token of the hub holds characters that no token has",
            remedy="run: hf auth login (or correct HF_TOKEN)",
        )


def keep_token_home(request: httpx2.Request) -> None:
    """Takes the token from a request to anywhere but the origin of HF_ENDPOINT."""
    if not is_hub(request.url):
        request.headers.pop("authorization", None)


def is_hub(url: httpx2.URL) -> bool:
    """Says whether an address is of the origin of HF_ENDPOINT."""
    import httpx2
    from huggingface_hub.constants import ENDPOINT

    return url.origin == httpx2.URL(ENDPOINT).origin


def _who(url: httpx2.URL) -> str:
    return "the hub" if is_hub(url) else f"the hub's storage at {url.host}"
