"""A drafted plugin as it is: written, installed by pip, tested, and used to convert."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fresh import Environment

from edgezoo_core.cards import CAPABILITIES


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("fresh") / "venv")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a tiny random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("work") / "tiny"
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("is_drafted", [False, True], ids=["plain", "from-folder"])
def test_it_passes_its_tests_and_converts(environment, checkpoint, is_drafted):
    work = checkpoint.parent
    family = "drafted" if is_drafted else "plain"
    origin = ("--from", "./tiny") if is_drafted else ()
    written = environment.run("edgezoo", "new-plugin", family, *origin, "--json", cwd=work)
    report = json.loads(written.stdout)
    assert report["next"][0] == f"pip install --editable './edgezoo-{family}[test]'"

    environment.run(
        *("pip", "install", "--quiet", "--no-build-isolation"),
        *("--editable", f"./edgezoo-{family}[test]"),
        cwd=work,
    )
    rows = json.loads(environment.run("edgezoo", "plugins", "--json", cwd=work).stdout)
    assert {r["family"]: (r["state"], r["reason"]) for r in rows}[family] == ("ok", "")

    tested = environment.run("pytest", "-v", cwd=work / f"edgezoo-{family}").stdout
    for check in ("module-equals-reference", *(c.replace("_", "-") for c in CAPABILITIES)):
        assert re.search(rf"test_contract\[{check}\S* PASSED", tested), tested
    assert not re.search("FAILED|ERROR|SKIPPED", tested), tested

    converted = environment.run(
        *("edgezoo", "convert", "./tiny", "--family", family, "--json", "--force"),
        *("--prefill", "4", "--kv-cache", "32"),
        cwd=work,
    )
    made = json.loads(converted.stdout)
    assert made["manifest"]["model"]["family"] == family
    assert Path(made["path"]).stat().st_size == made["manifest"]["artifact"]["size_bytes"]
