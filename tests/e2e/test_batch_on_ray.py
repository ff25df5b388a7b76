"""A matrix on a Ray cluster whose nodes share nothing, one of which is killed in the middle."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from command import BIN, ENVIRONMENT
from http_store import StoreServer, install

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 64,
}
MATRIX = """\
schema = 1
recipes = ["dynamic_int8", "fp16"]
kv_cache = [32]
prefill = [4]

[[models]]
target = "acme/small-gemma"

[[models]]
target = "acme/small-llama"
"""
#: Nodes have the token in their environment, as a cluster's secrets come.
TOKEN = "hf_whateverNodesNeed"
#: What a node says that it has; no more than one task fits.
NODE = {
    "num_cpus": 1,
    "memory": 4 << 30,
    "object_store_memory": 80 << 20,  # Ray's least
    "include_dashboard": False,
}


@pytest.fixture
def store():
    server = StoreServer()
    yield server
    server.stop()


@pytest.fixture
def environment(hub, tmp_path):
    """Publishes the models; gives the environment of a machine: nothing in it is another's."""
    from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

    for name, config, model in (
        ("gemma", GemmaConfig, GemmaForCausalLM),
        ("llama", LlamaConfig, LlamaForCausalLM),
    ):
        model(config(**SMALL)).save_pretrained(tmp_path / name)
        hub.publish(f"acme/small-{name}", tmp_path / name, is_gated=True)
    hub.tokens.add(TOKEN)
    hub.members.add(TOKEN)
    path = os.pathsep.join([install(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])

    def of(name: str) -> dict[str, str]:
        home = tmp_path / name
        (home / "tmp").mkdir(parents=True)
        return {
            **hub.environment(home / "hf"),
            "HF_TOKEN": TOKEN,
            "EDGEZOO_CACHE": str(home / "cache"),
            "TMPDIR": str(home / "tmp"),
            "STORE_NODE": name,
            "PYTHONPATH": path.strip(os.pathsep),
        }

    return of


@pytest.fixture
def cluster(environment, monkeypatch):
    """A cluster of three nodes: its head, which makes nothing, and two that work."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "600")
    from ray.cluster_utils import Cluster

    # A node that is slow lives; one that is gone refuses to answer, and is dead after five tries.
    health = {"health_check_period_ms": 1000, "health_check_timeout_ms": 60_000}
    started = Cluster()
    try:
        started.add_node(
            **{**NODE, "num_cpus": 0}, env_vars=environment("head"), _system_config=health
        )
        started.named = {
            name: started.add_node(**NODE, env_vars=environment(name)) for name in ("one", "two")
        }
        yield started
    finally:
        started.shutdown()


def begin(matrix, store, environment, *arguments):
    return subprocess.Popen(
        [BIN / "edgezoo", "batch", matrix, "--output", store, "--json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **environment},
        cwd=matrix.parent,
    )


def finish(run, code=0):
    out, err = run.communicate(timeout=900)
    assert run.returncode == code, out + err
    return json.loads(out)


def sums(report):
    """Sha256 of each artifact; manifests say when they were made."""
    return {c["name"]: c["files"]["artifact"]["sha256"] for c in report["cells"]}


def downloads(hub):
    """Requests for the whole of a weight file; plans ask for headers, by ranges."""
    return [
        request
        for request in hub.requests
        if request.method == "GET"
        and request.path.startswith("/storage/")
        and "model.safetensors" in request.path
        and "range" not in request.headers
    ]


def test_killed_node_costs_no_artifact_and_none_is_made_twice(
    cluster, hub, store, environment, tmp_path
):
    matrix = tmp_path / "ZOO.toml"
    matrix.write_text(MATRIX)
    # What lies in the folder where the user happens to be is nothing to import.
    (tmp_path / "edgezoo_core.py").write_text("raise RuntimeError('the wrong module')")
    driver = environment("driver")
    store.held_node = "one"
    run = begin(matrix, store.url, driver, "--address", cluster.address)
    # One node is about to put its first artifact: it dies with it.
    while not store.is_waiting.wait(0.2):
        assert run.poll() is None, run.communicate()
    cluster.remove_node(cluster.named["one"], allow_graceful=False)
    report = finish(run)
    assert {c["state"] for c in report["cells"]} == {"made"}
    assert len(report["cells"]) == 4
    # All there, as they are described, each put once, none by the node that died.
    artifacts = {f"/zoo/{c['files']['artifact']['name']}": c for c in report["cells"]}
    for path, cell in artifacts.items():
        found = hashlib.sha256(store.files[path]).hexdigest()
        assert found == cell["files"]["artifact"]["sha256"]
    puts = [(path, node) for path, node in store.puts if path.endswith(".tflite")]
    assert sorted(puts) == [(path, "two") for path in sorted(artifacts)]
    # The driver downloads no weights, each node each model once at most.
    assert 2 <= len(downloads(hub)) <= 4
    assert not list(Path(driver["HF_HOME"]).rglob("*.safetensors"))
    # The same as one machine makes, on its own disk.
    alone = finish(begin(matrix, tmp_path / "alone", environment("alone"), "--workers", "2"))
    assert sums(alone) == sums(report)
    # And again: there is nothing left to be made.
    before = len(store.puts)
    again = finish(begin(matrix, store.url, driver))
    assert {c["state"] for c in again["cells"]} == {"already there"}
    assert {path.rpartition("/")[2] for path, _ in store.puts[before:]} == {
        "report.json",
        "report.html",
    }
