"""A real model, SmolLM2-135M-Instruct, from its checkpoint to an answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
GREEDY = ["--temperature", "0", "--top-k", "1"]
PROMPTS = ["What is the capital of France?", "Name three fruits.", "Why is the sky blue?"]


def edgezoo(*arguments, code=0):
    """Runs the command, which ends with this exit code; returns what it printed to stdout."""
    done = subprocess.run(
        [BIN / "edgezoo", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real") / "smollm2-135m"
    subprocess.run([sys.executable, ROOT / "examples" / "smollm2.py", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def int8(checkpoint):
    """What the defaults give, verified."""
    out = edgezoo("convert", checkpoint, "--output", checkpoint.parent, "--verify", "--json")
    return json.loads(out)


@pytest.fixture(scope="module")
def reference(checkpoint):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32").eval()


def test_mapped_module_equals_transformers(checkpoint):
    report = json.loads(edgezoo("author", checkpoint, "--compare", "--json"))
    print(report["difference"])
    assert sum(report["parameters"].values()) == 134_515_008
    assert report["difference"]["same_choice"] == 1.0
    assert report["difference"]["largest"] < 1e-4 * report["difference"]["scale"]


def test_float32_file_gives_token_for_token_what_transformers_gives(
    checkpoint, reference, tmp_path
):
    import torch

    out = edgezoo(
        *("convert", checkpoint, "--recipe", "none", "--prefill", 32, "--kv-cache", 256),
        *("--output", tmp_path, "--json"),
    )
    path = json.loads(out)["path"]
    for prompt in PROMPTS:
        options = ("--engine", "interpreter", "--max-tokens", 48, "--json")
        answer = json.loads(edgezoo("run", path, "--prompt", prompt, *options))
        with torch.inference_mode():
            expected = reference.generate(
                torch.tensor([answer["prompt_tokens"]]), max_new_tokens=48, do_sample=False
            )[0, len(answer["prompt_tokens"]) :].tolist()
        if expected[-1] == 2:  # <|im_end|>, which an answer leaves out
            expected.pop()
        print(prompt, "->", answer["text"])
        assert answer["answer_tokens"] == expected


def test_int8_answers_sensibly(int8):
    out = edgezoo("run", int8["path"], "--prompt", PROMPTS[0])
    assert "Paris" in out


def test_int8_manifest_tells_where_it_comes_from(int8, checkpoint):
    manifest = int8["manifest"]
    names = {f["name"] for f in manifest["checkpoint"]["files"]}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert manifest["checkpoint"]["folder"] == str(checkpoint)
    assert manifest["recipe"]["weights"]["layers.29.down"] == "dynamic_int8"
    assert [s["name"] for s in manifest["signatures"]] == ["prefill_8", "prefill_128", "decode"]
    assert Path(int8["path"]).stat().st_size == manifest["artifact"]["size_bytes"] < 150e6


def test_default_file_is_still_the_model(int8):
    report = int8["verification"]
    print(report)
    assert report["passes"]
    assert report["reference"] == "transformers"
    assert report["structure"]["relative_difference"] < 1e-5
    assert report["weights"]["largest"] <= 1
    assert report["outputs"]["loss"]["mean_kl"] < 0.04
    assert report["outputs"]["loss"]["top1"] > 0.9


def test_int4_that_ruins_a_model_is_caught_by_its_outputs(checkpoint, tmp_path):
    out = edgezoo(
        *("convert", checkpoint, "--recipe", "dynamic_int4_block32", "--no-bundle"),
        *("--output", tmp_path, "--json"),
    )
    path = json.loads(out)["path"]
    report = json.loads(edgezoo("verify", path, "--no-structure", "--json", code=3))
    assert report["weights"]["passes"]  # stored as well as four bits can
    assert not report["outputs"]["passes"]
    assert report["outputs"]["loss"]["mean_kl"] > 0.3
