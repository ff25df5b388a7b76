"""From a repo on the hub to an artifact, and what is refused before its weights are fetched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = "acme/tiny"
EDGEZOO = Path(sys.executable).with_name("edgezoo")
CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}


@pytest.fixture
def files(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "source"
    LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(folder)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def edgezoo(hub, tmp_path):
    def run(*arguments, code=0, **variables):
        done = subprocess.run(
            [EDGEZOO, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **hub.environment(tmp_path / "home"), **variables},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def questions(hub):
    """What the hub was asked about repos."""
    return [r.path for r in hub.requests if r.path.startswith("/api/")]


def test_repo_converts_and_records_its_commit(hub, edgezoo, files):
    config = {**json.loads(files["config.json"]), "flux_capacitor": 1.21}
    commit = hub.publish(REPO, {**files, "config.json": json.dumps(config).encode()})
    done = edgezoo("convert", REPO, "--prefill", 4, "--kv-cache", 32, "--json")
    report = json.loads(done.stdout)
    warning = "config.json: flux_capacitor = 1.21 is not known and was ignored"
    assert report["manifest"]["config"]["warnings"] == [warning]
    assert done.stderr.count(f"WARNING: {warning}") == 1
    assert report["manifest"]["checkpoint"]["repo"] == REPO
    assert report["manifest"]["checkpoint"]["commit"] == commit
    assert report["manifest"]["model"]["source"] == f"{REPO}@{commit}"
    assert Path(report["path"]).name == "tiny_dynamic_int8_ekv32.tflite"
    assert questions(hub) == [f"/api/models/{REPO}/revision/main?blobs=true"]
    assert done.stderr.count(f"asking the hub for {REPO}") == 1
    # Again, where only the commit is to be asked for, and from the cache alone.
    hub.requests.clear()
    edgezoo("convert", REPO, "--prefill", 4, "--kv-cache", 32, "--json", "--force")
    assert [r.path for r in hub.requests] == [f"/api/models/{REPO}/revision/main?blobs=true"]
    again = edgezoo(
        *("convert", REPO, "--prefill", 4, "--kv-cache", 32, "--json", "--force"),
        HF_HUB_OFFLINE="1",
    )
    assert json.loads(again.stdout)["manifest"]["artifact"] == report["manifest"]["artifact"]


def test_adapter_from_the_hub_equals_the_one_in_a_folder(hub, edgezoo, files, tmp_path):
    import torch
    from safetensors.torch import save

    module = "base_model.model.model.layers.0.self_attn.q_proj"
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    pair = {
        f"{module}.lora_A.weight": torch.full((2, 64), 0.25),
        f"{module}.lora_B.weight": torch.full((64, 2), 0.5),
    }
    adapter = {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(pair),
    }
    hub.publish(REPO, files)
    commit = hub.publish("acme/adapter", adapter)
    (tmp_path / "adapter").mkdir()
    for name, content in adapter.items():
        (tmp_path / "adapter" / name).write_bytes(content)
    options = ("convert", REPO, "--prefill", 4, "--kv-cache", 32, "--json", "--force")
    made = {
        text: json.loads(edgezoo(*options, *(("--adapter", text) if text else ())).stdout)
        for text in ("acme/adapter", "./adapter", "")
    }
    about = [path.split("/")[4] for path in questions(hub)]
    assert about == ["tiny", "adapter", "tiny", "tiny"]
    sums = {text: report["manifest"]["artifact"]["sha256"] for text, report in made.items()}
    assert sums["acme/adapter"] == sums["./adapter"] != sums[""]
    assert made["acme/adapter"]["manifest"]["adapters"][0]["source"] == f"acme/adapter@{commit}"
    # Again, from the cache alone.
    again = edgezoo(*options, "--adapter", "acme/adapter", HF_HUB_OFFLINE="1")
    manifest = json.loads(again.stdout)["manifest"]
    assert manifest["artifact"] == made["acme/adapter"]["manifest"]["artifact"]
    assert manifest["adapters"] == made["acme/adapter"]["manifest"]["adapters"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "no installed family converts MambaForCausalLM"),
        ({"sliding_window": 512}, "sliding_window = 512 is not implemented"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide', expected a positive integer"),
    ],
)
def test_config_is_refused_before_any_weight_is_fetched(hub, edgezoo, files, changes, message):
    config = {**json.loads(files["config.json"]), **changes}
    hub.publish(REPO, {**files, "config.json": json.dumps(config).encode()})
    failed = edgezoo("convert", REPO, code=1)
    assert message in failed.stderr
    assert "Fix: " in failed.stderr
    # Of the weights, at most a header was asked for.
    stored = [r for r in hub.requests if r.path.startswith("/storage/")]
    assert all(r.headers["range"] == f"bytes=0-{(1 << 16) - 1}" for r in stored)
