"""Nothing of a checkpoint runs: every way in which one could carry code leaves a canary alone."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgezoo_core import adapter_files, checkpoint, tokenizer
from edgezoo_core.bundle import vocabulary
from edgezoo_core.errors import ArtifactError, CheckpointError
from edgezoo_core.pytorch_files import open_pytorch

CANARY = "canary"
#: What each planted module does when it is imported.
PAYLOAD = "import os, pathlib\npathlib.Path(os.environ['EDGEZOO_CANARY']).touch()\n"
PLANTED = ("modeling_evil", "configuration_evil", "tokenization_evil", "torch", "transformers")
PLANTED += ("jinja2", "numpy", "sitecustomize", "edgezoo_core")
AUTO = {
    "AutoConfig": "configuration_evil.EvilConfig",
    "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
    "AutoTokenizer": ["tokenization_evil.EvilTokenizer", None],
}


class Reduce:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['EDGEZOO_CANARY']}",)


class State:
    def __setstate__(self, state):
        Path(os.environ["EDGEZOO_CANARY"]).touch()


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that a payload makes."""
    path = tmp_path / CANARY
    monkeypatch.setenv("EDGEZOO_CANARY", str(path))
    yield path
    assert not path.exists()


@pytest.fixture
def folder(tmp_path, canary):
    """A sound little Llama that brings code in every way that transformers knows, and some more."""
    folder = tmp_path / "model"
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "auto_map": AUTO}))
    about = {"tokenizer_class": "EvilTokenizer", "auto_map": AUTO, "custom": "evil.py"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    for name in PLANTED:
        (folder / f"{name}.py").write_text(PAYLOAD)
    return folder


def command(folder, *arguments):
    """Runs edgezoo where the planted modules are."""
    return subprocess.run(
        [Path(sys.executable).parent / "edgezoo", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_canary_is_made_where_code_does_run(tmp_path, monkeypatch):
    made = tmp_path / CANARY
    monkeypatch.setenv("EDGEZOO_CANARY", str(made))
    pickle.loads(pickle.dumps(Reduce()))
    assert made.exists()


def test_authoring_and_its_reference_run_no_code_of_the_folder(folder):
    done = command(folder, "author", "./", "--compare")
    assert done.returncode == 0, done.stderr
    assert "same choice at 100%" in done.stdout


def test_a_new_plugin_runs_no_code_of_the_folder(folder, tmp_path):
    done = command(folder, "new-plugin", "evil", "--from", "./", "--output", str(tmp_path / "new"))
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1), done.stderr


@pytest.mark.parametrize("load", [tokenizer.load, vocabulary.load])
def test_tokenizers_run_no_code_of_the_folder(load, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ArtifactError):
        load(folder)


def zipped(path):
    inner = io.BytesIO()
    torch.save({"a": Reduce()}, inner)
    torch.save({"a": torch.zeros(2), "b": inner.getvalue()}, path)


def tarred(path):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Reduce(), 2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def foreign_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../data.pkl", pickle.dumps(Reduce(), 2))
        archive.writestr("archive/data.pkl", pickle.dumps(Reduce(), 2))
        archive.writestr("archive/version", "3")


GADGETS = {
    "reduce": lambda path: torch.save({"a": Reduce()}, path),
    "reduce, legacy": lambda p: torch.save(
        {"a": Reduce()}, p, _use_new_zipfile_serialization=False
    ),
    "setstate": lambda path: torch.save({"a": State()}, path),
    "module": lambda path: torch.save(torch.nn.Linear(2, 2), path),
    "bare pickle": lambda path: path.write_bytes(pickle.dumps(Reduce())),
    "inside of bytes": zipped,
    "tar": tarred,
    "foreign zip": foreign_zip,
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_pickles_build_nothing_but_tensors(gadget, tmp_path, canary):
    path = tmp_path / "pytorch_model.bin"
    GADGETS[gadget](path)
    with pytest.raises(CheckpointError):
        open_pytorch(path, path.name)
    with pytest.raises(CheckpointError):
        checkpoint.open_folder(tmp_path)
    adapter = tmp_path / "adapter_model.bin"
    path.rename(adapter)
    with pytest.raises(CheckpointError):
        adapter_files.open_tensors(adapter, "./adapter")
