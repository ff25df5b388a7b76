"""The example plugins: built by the scaffold from small checkpoints, held to the contract."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import BIN
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from edgezoo_core import certificate, zoo
from edgezoo_core.shapes import Shapes
from edgezoo_core.testkit.examination import Examination, examine

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "plugins"
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: Family -> model_type, and what differs from SMALL.
FAMILIES = {
    "gemma2": ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 20}),
    "llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
}


@pytest.fixture
def checkpoint(tmp_path):
    """Saves a small random checkpoint of a family."""

    def checkpoint(family: str) -> Path:
        kind, differing = FAMILIES[family]
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SMALL, **differing}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 1.35 / parameter.shape[-1] ** 0.5)
                else:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        folder = tmp_path / "checkpoint"
        model.save_pretrained(folder)
        return folder

    return checkpoint


@pytest.fixture
def install(checkpoint, site, tmp_path, monkeypatch):
    """Builds a family with the scaffold and puts it on the path, here and in workers."""

    def install(family: str, *, is_written: bool) -> Path:
        folder = checkpoint(family)
        command = [BIN / "edgezoo", "new-plugin", family, "--from", folder, "--output", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        built = tmp_path / f"edgezoo-{family}" / f"edgezoo_{family}"
        # Only this family: others may claim the same architecture.
        monkeypatch.setenv("EDGEZOO_PLUGINS", family)
        if is_written:
            for name in (f"{family}.py", "models.toml"):
                assert (built / name).is_file()
                shutil.copy(EXAMPLES / family / name, built / name)
        package = site.add(family)
        shutil.copytree(built, package, dirs_exist_ok=True)
        path = os.pathsep.join([str(site.folder), os.environ.get("PYTHONPATH", "")])
        monkeypatch.setenv("PYTHONPATH", path)
        for name in [n for n in sys.modules if n.partition(".")[0] == package.name]:
            del sys.modules[name]
        return folder

    return install


def faults(report):
    return {o.check: o.found for o in report.outcomes if o.verdict != "passed"}


@pytest.mark.parametrize("family", FAMILIES)
def test_example_holds_the_contract(family, install, site):
    install(family, is_written=True)
    report = examine(site.plugin(family))
    assert faults(report) == {}
    assert len(report.capabilities) == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_untouched_draft_computes_what_transformers_does(family, install, site):
    install(family, is_written=False)
    with Examination(site.plugin(family)) as examination:
        for check in ("tensor-renamed", "config-fields", "signatures-agree", "recipes-planned"):
            outcome = examination.outcome(check)
            assert (outcome.verdict, outcome.found[1:]) == ("passed", ())


def test_untouched_draft_of_windows_and_caps_converts(install, tmp_path):
    folder = install("gemma2", is_written=False)
    # The window of 20 tokens ends within what prefill, decode and the reference read.
    shapes = Shapes(prefill_lengths=(8, 32), kv_cache_length=128)
    made = zoo.convert(str(folder), shapes=shapes, output=tmp_path, with_bundle=False)
    found = certificate.verify(made.artifact.path)
    assert found.reference == "transformers"
    assert found.structure.passes
    assert found.weights.passes
    assert found.passes
