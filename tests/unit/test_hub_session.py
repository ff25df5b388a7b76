"""The token of the hub, and what takes it along."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.constants import ENDPOINT

from edgezoo_core import environment, hub_errors, hub_session, installing
from edgezoo_core.compiler import workers
from edgezoo_core.errors import CheckpointError, ConversionError, PublishError
from edgezoo_core.publishing import faults

TOKEN = "hf_secretsecretsecretsecretsecretsecr"


@pytest.fixture
def seen() -> Iterator[list[httpx2.Request]]:
    """Requests of the client's session, which all end in an empty answer."""
    requests: list[httpx2.Request] = []

    def answer(request):
        requests.append(request)
        return httpx2.Response(200)

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    huggingface_hub.set_client_factory(lambda: client)
    yield requests
    from huggingface_hub.utils._http import default_client_factory

    huggingface_hub.set_client_factory(default_client_factory)


@pytest.mark.parametrize(
    ("url", "gets_it"),
    [
        ("https://huggingface.co/api/models", True),
        ("https://huggingface.co:443/api/models", True),
        ("http://huggingface.co/api/models", False),
        ("https://huggingface.co:8443/api/models", False),
        ("https://cdn.huggingface.co/api/models", False),
        ("https://hf.co/api/models", False),
        ("https://huggingface.co.example.org/api/models", False),
        ("https://huggingface.co@example.org/api/models", False),
    ],
)
def test_token_goes_to_the_origin_of_the_hub_alone(seen, url, gets_it):
    with hub_session.guarded():
        huggingface_hub.get_session().get(url, headers={"authorization": f"Bearer {TOKEN}"})
    (request,) = seen
    # A password of the address becomes a header of the same name.
    assert (TOKEN in request.headers.get("authorization", "")) == gets_it
    assert ("authorization" in request.headers) == gets_it


def test_session_is_as_before_after_a_question(seen):
    client = huggingface_hub.get_session()
    with hub_session.guarded():
        assert client.event_hooks["request"]
    assert client.event_hooks == {"request": [], "response": []}


def test_guard_holds_until_the_last_of_several_threads_has_left(seen):
    client = huggingface_hub.get_session()
    headers = {"authorization": f"Bearer {TOKEN}"}

    def ask():
        with hub_session.guarded():
            client.get("https://huggingface.co/a")

    with hub_session.guarded():
        client.get("https://huggingface.co/a")
        other = threading.Thread(target=ask)
        other.start()
        other.join()
        client.get("https://example.org", headers=headers)
    assert [r.headers.get("authorization") for r in seen] == [None] * 3
    assert client.event_hooks == {"request": [], "response": []}


def test_question_is_asked_once(seen):
    client = huggingface_hub.get_session()
    with hub_session.guarded():
        client.get("https://huggingface.co/a")
        client.get("https://huggingface.co/a", headers={"range": "bytes=8-"})
        client.head("https://huggingface.co/a")
        with pytest.raises(hub_session.PassingError, match="the hub does not answer"):
            client.get("https://huggingface.co/a")
    assert len(seen) == 3


def test_no_process_that_edgezoo_starts_sees_the_token(monkeypatch, tmp_path):
    for name in environment.TOKENS:
        monkeypatch.setenv(name, TOKEN)
    monkeypatch.setenv("HF_HOME", "somewhere")
    assert TOKEN not in environment.without_tokens().values()
    assert environment.without_tokens()["HF_HOME"] == "somewhere"
    # In place of pip, and of a worker.
    asks = f"import os, sys; sys.exit({TOKEN!r} in os.environ.values())"
    installing.run([sys.executable, "-c", asks])
    shows = tmp_path / "python"
    shows.write_text("#!/bin/sh\nenv | grep -E '^(HF|HUGGING)' >&2\n")
    shows.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shows))
    with pytest.raises(ConversionError, match="HF_HOME=somewhere") as failed:
        workers.run("examine", [{}])
    assert TOKEN not in str(failed.value)
    assert os.environ["HF_TOKEN"] == TOKEN


@pytest.mark.parametrize("token", ["hf_caf\u00e9", "hf_a\x01b"])
def test_token_that_no_header_carries_is_refused_unseen(monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(CheckpointError) as refused:
        hub_session.refuse_odd_token()
    assert token not in refused.value.message + refused.value.remedy
    assert "HF_TOKEN" in refused.value.remedy


def test_error_of_the_client_is_told_without_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    words = f"Illegal header value b'Bearer {TOKEN}' for https://me:pass@word@example.org/x@y"
    told = hub_errors.explain(RuntimeError(words), "acme/tiny", "main").message
    assert "Illegal header value b'Bearer (token)' for https://example.org/x@y" in told


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.OfflineModeIsEnabled("offline"),
            "the hub is not asked while HF_HUB_OFFLINE is set",
        ),
        (errors.HFValidationError("odd"), "'acme/tiny' is no valid repo name"),
        (
            httpx2.ReadTimeout("", request=httpx2.Request("GET", ENDPOINT)),
            "the hub has gone silent",
        ),
    ],
)
def test_downloads_and_uploads_tell_the_same_of_a_fault(error, message):
    told = [hub_errors.explain(error, "acme/tiny", "main"), faults.explain(error, "acme/tiny")]
    assert all(message in t.message for t in told)
    assert isinstance(told[0], CheckpointError)
    assert isinstance(told[1], PublishError)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"{ENDPOINT}/api/models/acme/tiny", "the hub does not accept your token"),
        ("https://storage.example.org/part", "failed (status 401)"),
    ],
)
def test_status_of_the_storage_says_nothing_of_the_token(monkeypatch, url, message):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    answer = httpx2.Response(401, request=httpx2.Request("GET", url))
    error = errors.HfHubHTTPError("refused", response=answer)
    assert message in hub_errors.explain(error, "acme/tiny", "main").message
    assert message in faults.explain(error, "acme/tiny").message
