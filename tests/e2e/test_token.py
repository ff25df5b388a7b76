"""The hub's token is looked for wherever a run leaves something, or lets somebody look."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hub_server import Fault

REPO = "acme/tiny"
TOKEN = "hf_secretsecretsecretsecretsecretsecr"
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights" * 1000}
EDGEZOO = Path(sys.executable).with_name("edgezoo")


@pytest.fixture
def elsewhere(hub_server):
    """A server on another port of the same host, as on any other host."""
    server = hub_server.HubServer()
    server.publish(REPO, FILES)
    yield server
    server.stop()


def traces(folder, secret):
    """Files below a folder that hold the secret, in their contents or their names."""
    found = [p for p in folder.rglob("*") if secret in p.name]
    return found + [
        p for p in folder.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()
    ]


def sightings(server, secret):
    """Requests that told a server the secret, to whichever of its two origins."""
    return [r for r in server.requests if secret in f"{r.path} {dict(r.headers)}"]


def at_storage(hub):
    return [r for r in hub.requests if r.host.startswith("localhost")]


# Where requests go.


@pytest.mark.parametrize("origin", ["another port", "another host and port"])
def test_storage_elsewhere_does_not_see_it(hub, client, elsewhere, origin):
    hub.publish(REPO, FILES)
    hub.tokens.add(TOKEN)
    hub.storage_at = elsewhere.url if origin == "another port" else elsewhere.storage_url
    assert client.pull(REPO, token=TOKEN).error is None
    assert [r.method for r in elsewhere.requests] == ["GET"]
    assert sightings(elsewhere, TOKEN) == []
    assert sightings(hub, TOKEN) == hub.requests


@pytest.mark.parametrize("part", ["api", "resolve", "storage"])
def test_chain_of_redirects_does_not_carry_it_along(hub, client, elsewhere, part):
    hub.publish(REPO, FILES)
    hub.tokens.add(TOKEN)
    # From the hub to its storage, from there to somewhere else, and from there to the hub again.
    hub.faults[part] = iter([Fault(moved_to=elsewhere.url)])
    elsewhere.faults[part] = iter([Fault(moved_to=hub.url)])
    client.pull(REPO, token=TOKEN)
    assert elsewhere.requests or part == "resolve", "a HEAD is not followed elsewhere"
    assert sightings(elsewhere, TOKEN) == []
    assert not any(TOKEN in f"{dict(r.headers)}" for r in at_storage(hub))


def test_token_of_the_file_does_not_go_further_than_that_of_the_variable(hub, client):
    hub.publish(REPO, FILES, is_gated=True)
    hub.tokens.add(TOKEN)
    hub.members.add(TOKEN)
    client.home.joinpath("token").write_text(f"{TOKEN}\n")
    assert client.pull(REPO).error is None
    assert len(at_storage(hub)) == 1
    assert not any(TOKEN in f"{r.path} {dict(r.headers)}" for r in at_storage(hub))
    assert traces(client.home, TOKEN) == [client.home / "token"]
    assert sightings(hub, TOKEN)


# What a run leaves behind.


class Tree:
    """Looks at the processes below one while it runs: their arguments and their environments."""

    def __init__(self, root: int) -> None:
        self.arguments: dict[int, str] = {}
        self.environments: dict[int, str] = {}
        self._root = root
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        family = {self._root}
        while not self._is_over.wait(0.2):
            for folder in Path("/proc").glob("[0-9]*"):
                pid = int(folder.name)
                with suppress(OSError):  # it ended
                    parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
                    if pid in family or parent in family:
                        family.add(pid)
                        self.arguments[pid] = folder.joinpath("cmdline").read_text()
                        self.environments[pid] = folder.joinpath("environ").read_text()


def test_conversion_leaves_no_trace_of_it(hub, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "source")
    hub.publish(REPO, tmp_path / "source", is_gated=True)
    hub.tokens.add(TOKEN)
    hub.members.add(TOKEN)
    variables = {
        **os.environ,
        **hub.environment(tmp_path / "home"),
        "EDGEZOO_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path),
        "HF_TOKEN": TOKEN,
    }
    command = [EDGEZOO, "convert", REPO, "--prefill", "4", "--kv-cache", "32", "-v", "--json"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=variables,
    )
    tree = Tree(running.pid)
    said, talk = running.communicate()
    tree.stop()
    assert running.returncode == 0, talk
    assert TOKEN not in said + talk
    assert traces(tmp_path, TOKEN) == []
    assert list(tmp_path.glob("*.manifest.json")), "the search has something to look at"
    assert not any(TOKEN in arguments for arguments in tree.arguments.values())
    workers = {pid for pid, words in tree.arguments.items() if "edgezoo_core.compiler" in words}
    assert workers, "the workers were seen"
    assert all("PYTHONPATH" in tree.environments[pid] for pid in workers)
    assert not any(TOKEN in tree.environments[pid] for pid in workers)
    assert TOKEN in tree.environments[running.pid]
    assert not any(TOKEN in f"{r.path} {dict(r.headers)}" for r in at_storage(hub))


def test_crash_does_not_show_it(hub, tmp_path):
    hub.publish(REPO, FILES)
    hub.tokens.add(TOKEN)
    script = (
        "from edgezoo_core.cli import main; from edgezoo_core.cli.convert import convert_command\n"
        "from edgezoo_core import downloading, hub\n"
        "def crash(response, *_):\n"
        "    raise BaseException('crashed')\n"
        "downloading._begins_at = crash\n"
        f"convert_command.callback = lambda **_: hub.pull({REPO!r})\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "convert", REPO],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **hub.environment(tmp_path / "home"), "HF_TOKEN": TOKEN},
    )
    assert "Traceback" in done.stderr
    assert "crashed" in done.stderr
    assert sightings(hub, TOKEN)
    assert TOKEN not in done.stdout + done.stderr
    assert traces(tmp_path, TOKEN) == []


# Passwords in the hub's address.


def test_password_in_the_address_of_the_hub_is_told_to_nobody(hub, client, elsewhere):
    pair = base64.b64encode(b"me:pa55word").decode()
    hub.tokens.add(f"Basic {pair}")
    hub.publish(REPO, FILES)
    hub.publish("acme/gated", FILES, is_gated=True)
    hub.storage_at = elsewhere.storage_url
    address = {"HF_ENDPOINT": hub.url.replace("//", "//me:pa55word@")}
    good = client.pull(REPO, **address)
    assert good.error is None
    assert sightings(hub, pair)
    assert sightings(elsewhere, pair) == []
    told = [client.pull("acme/none", **address), client.pull("acme/gated", **address)]
    hub.faults["resolve"] = iter([Fault(status=418)])
    hub.publish(REPO, {**FILES, "config.json": b"{}"})
    told.append(client.pull(REPO, **address))
    hub.stop()
    told.append(client.pull("acme/none", **address))
    assert all(answer.error for answer in told)
    for answer in told:
        assert "pa55word" not in f"{answer}"
        assert pair not in f"{answer}"
    assert "pa55word" not in "".join(map(str, (p for p in client.home.rglob("*"))))
