"""`edgezoo plan` against a hub: what it fetches, what it says, and what `convert` refuses by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = "acme/small"
EDGEZOO = Path(sys.executable).with_name("edgezoo")
SHAPES = ("--prefill", "4", "--kv-cache", "32")
#: The command, with what a test puts before it.
PATCHED = """
import sys
{patch}
from edgezoo_core.cli import main
main(prog_name="edgezoo")
"""
SMALL_DISK = """
import collections, shutil
usage = collections.namedtuple("usage", "total used free")
shutil.disk_usage = lambda path: usage(10**9, 10**9 - 2 * 10**6, 2 * 10**6)
"""
SMALL_MEMORY = """
from edgezoo_core.compiler import workers
workers.available_bytes = lambda: 200_000_000
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A Llama of 14 MB in four files, with a tokenizer file of 5 MB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("small")
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=4096,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="5MB")
    (folder / "tokenizer.json").write_bytes(b" " * 5_000_000)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def edgezoo(hub, tmp_path):
    def run(*arguments, code=0, patch="", **variables):
        command = [sys.executable, "-c", PATCHED.format(patch=patch)] if patch else [EDGEZOO]
        done = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **hub.environment(tmp_path / "home"), **variables},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def weights_of(hub):
    """Returns the bytes of weight files that the hub was asked for."""
    total = 0
    for request in hub.requests:
        if request.method == "GET" and request.path.startswith("/storage/"):
            start, stop = request.headers["range"].removeprefix("bytes=").split("-")
            total += int(stop) + 1 - int(start)
    return total


def test_a_plan_takes_config_index_and_headers_and_nothing_else(hub, edgezoo, files):
    commit = hub.publish(REPO, files, card={"license": "apache-2.0"}, is_gated=True)
    hub.tokens = hub.members = {"hf_member"}
    done = edgezoo("plan", REPO, *SHAPES, "--json", HF_TOKEN="hf_member")
    plan = json.loads(done.stdout)
    sizes = {name: len(content) for name, content in files.items()}
    shards = sorted(n for n in sizes if n.endswith(".safetensors"))
    print(f"{hub.sent_bytes:,} bytes sent of {sum(sizes.values()):,}")
    assert len(shards) > 1
    assert sorted(set(hub.fetched())) == sorted(
        ["config.json", "model.safetensors.index.json", *shards]
    )
    assert hub.sent_bytes < 80_000 * len(shards)
    storage = [r for r in hub.requests if r.path.startswith("/storage/")]
    assert storage
    assert not any(r.token for r in storage)
    assert plan["fits"]
    assert (plan["family"], plan["commit"], plan["basis"]) == ("tinyllama", commit, "module")
    assert (plan["license"], plan["is_gated"]) == ("apache-2.0", True)
    wanted = {n: s for n, s in sizes.items() if n not in ("config.json", "README.md")}
    assert plan["download_bytes"] == sum(wanted.values()) - sizes["model.safetensors.index.json"]
    assert plan["kv_cache_bytes"] == {"32": 32 * 1024 * 2, "64": 64 * 1024 * 2}
    # What it foretells comes true, and a second plan finds the compiled graph.
    made = json.loads(
        edgezoo("convert", REPO, *SHAPES, "--no-bundle", "--json", HF_TOKEN="hf_member").stdout
    )
    actual = made["manifest"]["artifact"]["size_bytes"]
    print(f"predicted {plan['artifact_bytes']:,}, made {actual:,}")
    assert abs(plan["artifact_bytes"] / actual - 1) < 0.01
    offline = json.loads(edgezoo("plan", REPO, *SHAPES, "--json", HF_HUB_OFFLINE="1").stdout)
    assert (offline["artifact_bytes"], offline["basis"]) == (actual, "skeleton")
    assert offline["download_bytes"] == 0


def test_all_tensors_that_do_not_fit_are_named_and_no_weight_is_downloaded(hub, edgezoo, files):
    from safetensors.torch import load, save

    names = sorted(n for n in files if n.endswith(".safetensors"))
    tensors = {k: v for name in names for k, v in load(files[name]).items()}
    for layer in range(2):
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            name = f"model.layers.{layer}.self_attn.{part}"
            tensors[f"{name}.values"] = tensors.pop(f"{name}.weight")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:7].clone()
    tensors["model.layers.0.mlp.stray"] = tensors["model.norm.weight"].clone()
    weights = save(tensors)
    hub.publish(REPO, {"config.json": files["config.json"], "model.safetensors": weights})
    plan = json.loads(edgezoo("plan", REPO, *SHAPES, "--json", code=3).stdout)
    assert len(plan["missing"]) == 8
    assert len(plan["unexpected"]) == 9
    assert [line.partition(":")[0] for line in plan["misshapen"]] == [
        "wrong shape of model.norm.weight"
    ]
    assert [f["subject"] for f in plan["findings"]] == ["tensors"]
    failed = edgezoo("convert", REPO, *SHAPES, code=1)
    assert "does not fit the family's tensor names" in failed.stderr
    assert "Fix: " in failed.stderr
    assert weights_of(hub) <= 2 * (1 << 16) < len(weights)


def test_a_gated_repo_tells_its_licence_and_the_way_in(hub, edgezoo, files):
    hub.publish(REPO, files, card={"license": "gemma"}, is_gated=True)
    done = edgezoo("plan", REPO, code=3)
    assert "license         gemma, gated" in done.stdout
    assert "error: access: acme/small is gated, and you are not logged in" in done.stdout
    assert "hf auth login" in done.stdout
    assert weights_of(hub) == 0
    failed = edgezoo("convert", REPO, code=1)
    assert "acme/small is gated" in failed.stderr


@pytest.mark.parametrize(
    ("patch", "message"),
    [(SMALL_DISK, "on the disk of"), (SMALL_MEMORY, "GB at the peak, 0.20 GB free")],
    ids=["disk", "memory"],
)
def test_convert_refuses_before_any_download(hub, edgezoo, files, patch, message):
    hub.publish(REPO, files)
    failed = edgezoo("convert", REPO, *SHAPES, code=1, patch=patch)
    assert message in failed.stderr
    assert "Fix: " in failed.stderr
    assert weights_of(hub) <= (1 << 16) * sum(n.endswith(".safetensors") for n in files)
    assert "tokenizer.json" not in hub.fetched()


def test_a_family_that_nobody_converts_does_not_fit(hub, edgezoo, files):
    config = {**json.loads(files["config.json"]), "architectures": ["MambaForCausalLM"]}
    hub.publish(REPO, {**files, "config.json": json.dumps(config).encode()})
    plan = json.loads(edgezoo("plan", REPO, "--json", code=3).stdout)
    assert plan["family"] is None
    assert plan["download_bytes"] > 10_000_000
    (finding,) = plan["findings"]
    assert "no installed family converts MambaForCausalLM" in finding["message"]


def test_pytorch_files_are_planned_without_their_names(hub, edgezoo, files):
    hub.publish(REPO, {"config.json": files["config.json"], "pytorch_model.bin": bytes(9_000)})
    plan = json.loads(edgezoo("plan", REPO, *SHAPES, "--json").stdout)
    assert plan["basis"] == "module"
    assert plan["artifact_bytes"] > 3_000_000
    (finding,) = plan["findings"]
    assert (finding["level"], finding["subject"]) == ("warning", "tensors")
    assert weights_of(hub) == 0


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((1 << 25).to_bytes(8, "little") + bytes((1 << 25) + 8), "a header of 33554432 bytes"),
        ((2).to_bytes(8, "little") + b"{}" + bytes(5), "its tensors take 0 bytes"),
    ],
    ids=["huge", "cut"],
)
def test_a_hostile_header_is_refused_from_afar(hub, edgezoo, files, header, message):
    hub.publish(REPO, {"config.json": files["config.json"], "model.safetensors": header})
    plan = json.loads(edgezoo("plan", REPO, *SHAPES, "--json", code=3).stdout)
    finding = plan["findings"][0]
    assert (finding["level"], finding["subject"]) == ("error", "tensors")
    assert message in finding["message"]
    assert weights_of(hub) <= 1 << 16


def test_a_header_that_trickles_in_is_asked_for_again(hub, hub_server, edgezoo, files):
    hub.publish(REPO, files)
    hub.faults["storage"] = iter([hub_server.Fault(trickles="body")])
    done = edgezoo("plan", REPO, *SHAPES, "--json", HF_HUB_DOWNLOAD_TIMEOUT="2")
    assert json.loads(done.stdout)["basis"] == "module"
    said = "waiting, as the hub's storage at localhost sends next to nothing: try 2 of 5"
    assert said in done.stderr


@pytest.mark.parametrize("name", ["../../evil.json", "/tmp/evil.json", "evil\x1b[2J.json"])
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_a_list_with_names_that_lead_out_is_refused(hub, edgezoo, files, tmp_path, command, name):
    hub.publish(REPO, files)
    hub.also_listed.append({"rfilename": name, "size": 8, "blobId": "0" * 40})
    before = set(tmp_path.parent.rglob("*"))
    failed = edgezoo(command, REPO, *SHAPES, code=1)
    assert f"names that no file of a repo has: {name!a}" in failed.stderr
    assert "Fix: " in failed.stderr
    assert [r.path for r in hub.requests] == [f"/api/models/{REPO}/revision/main?blobs=true"]
    assert set(tmp_path.parent.rglob("*")) == before


def test_a_target_that_cannot_be_looked_at_is_an_error_of_its_own(hub, edgezoo, files):
    hub.publish(REPO, files)
    assert "the hub has no model acme/none" in edgezoo("plan", "acme/none", code=1).stderr
    assert "no recipe is called" in edgezoo("plan", REPO, "--recipe", "dynamic", code=1).stderr
