"""A real model, SmolLM2-135M-Instruct, from its checkpoint to an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import edgezoo

GREEDY = ["--temperature", "0", "--top-k", "1"]
PROMPTS = ["What is the capital of France?", "Name three fruits.", "Why is the sky blue?"]


@pytest.fixture(scope="module")
def int8(smollm2, tmp_path_factory):
    """What the defaults give, verified."""
    folder = tmp_path_factory.mktemp("int8")
    return json.loads(edgezoo("convert", smollm2, "--output", folder, "--verify", "--json").stdout)


@pytest.fixture(scope="module")
def reference(smollm2):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2, dtype="float32").eval()


def test_mapped_module_equals_transformers(smollm2):
    report = json.loads(edgezoo("author", smollm2, "--compare", "--json").stdout)
    print(report["difference"])
    assert sum(report["parameters"].values()) == 134_515_008
    assert report["difference"]["same_choice"] == 1.0
    assert report["difference"]["largest"] < 1e-4 * report["difference"]["scale"]


def test_float32_file_gives_token_for_token_what_transformers_gives(smollm2, reference, tmp_path):
    import torch

    out = edgezoo(
        *("convert", smollm2, "--recipe", "none", "--prefill", 32, "--kv-cache", 256),
        *("--output", tmp_path, "--json"),
    )
    path = json.loads(out.stdout)["path"]
    for prompt in PROMPTS:
        options = ("--engine", "interpreter", "--max-tokens", 48, "--json")
        answer = json.loads(edgezoo("run", path, "--prompt", prompt, *options).stdout)
        with torch.inference_mode():
            expected = reference.generate(
                torch.tensor([answer["prompt_tokens"]]), max_new_tokens=48, do_sample=False
            )[0, len(answer["prompt_tokens"]) :].tolist()
        if expected[-1] == 2:  # <|im_end|>, which an answer leaves out
            expected.pop()
        print(prompt, "->", answer["text"])
        assert answer["answer_tokens"] == expected


def test_int8_answers_sensibly(int8):
    out = edgezoo("run", int8["path"], "--prompt", PROMPTS[0]).stdout
    assert "Paris" in out


def test_int8_manifest_tells_where_it_comes_from(int8, smollm2):
    manifest = int8["manifest"]
    names = {f["name"] for f in manifest["checkpoint"]["files"]}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert manifest["checkpoint"]["folder"] == str(smollm2)
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


def test_int4_that_ruins_a_model_is_caught_by_its_outputs(smollm2, tmp_path):
    out = edgezoo(
        *("convert", smollm2, "--recipe", "dynamic_int4_block32", "--no-bundle"),
        *("--output", tmp_path, "--json"),
    )
    path = json.loads(out.stdout)["path"]
    report = json.loads(edgezoo("verify", path, "--no-structure", "--json", code=3).stdout)
    assert report["weights"]["passes"]  # stored as well as four bits can
    assert not report["outputs"]["passes"]
    assert report["outputs"]["loss"]["mean_kl"] > 0.3
