"""The distributions as a user installs them: wheels and sdists, in clean environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {
    "edgezoo_core": ROOT,
    "edgezoo_gemma": ROOT / "plugins" / "edgezoo-gemma",
    "edgezoo_tinyllama": ROOT / "plugins" / "edgezoo-tinyllama",
    "edgezoo_phi2": ROOT / "plugins" / "edgezoo-phi2",
}


def run(*command, cwd):
    # An environment without what the test runner has set, such as PYTHONPATH.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV", "VIRTUAL"))}
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**kept, "PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    for project in PROJECTS.values():
        # hatchling is in this environment; the wheel is built from the sdist.
        run(
            *(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, project),
            cwd=folder,
        )
    return folder


def environment(folder):
    venv.create(folder, with_pip=True)
    return folder / "bin"


def test_every_wheel_and_sdist_is_whole(dist):
    for name in PROJECTS:
        (wheel,) = dist.glob(f"{name}-*.whl")
        (sdist,) = dist.glob(f"{name}-*.tar.gz")
        with zipfile.ZipFile(wheel) as archive:
            inside = archive.namelist()
        with tarfile.open(sdist) as archive:
            source = archive.getnames()
        assert f"{name}/__init__.py" in inside
        assert f"{name}/py.typed" in inside
        data = "registry.toml" if name == "edgezoo_core" else "models.toml"
        assert f"{name}/{data}" in inside
        if name == "edgezoo_core":
            templates = (ROOT / name / "scaffold" / "templates").iterdir()
            assert {f"{name}/scaffold/templates/{t.name}" for t in templates} <= set(inside)
        assert any(n.endswith("licenses/LICENSE") for n in inside)
        assert any(n.endswith("/README.md") for n in source)
        assert not any("tests/" in n for n in inside)


def test_core_alone_lists_without_torch(dist, tmp_path):
    bin_folder = environment(tmp_path / "core")
    (wheel,) = dist.glob("edgezoo_core-*.whl")
    run(bin_folder / "python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    packages = json.loads(
        run(bin_folder / "python", "-m", "pip", "list", "--format=json", cwd=tmp_path)
    )
    names = {p["name"].lower() for p in packages}
    assert "edgezoo-core" in names
    assert not names & {"torch", "litert-torch", "tensorflow", "transformers", "numpy"}
    rows = json.loads(run(bin_folder / "edgezoo", "list", "--available", "--json", cwd=tmp_path))
    assert {r["id"]: r["distribution"] for r in rows}["phi-2"] == "edgezoo-phi2"
    assert not any(r["installed"] for r in rows)


def test_plugins_bring_core_and_command_and_convert(dist, tmp_path):
    bin_folder = environment(tmp_path / "plugins")
    # By name, as after publication; the local wheels stand in for the registry.
    run(
        *(bin_folder / "python", "-m", "pip", "install", "--quiet", "--no-compile"),
        *("--find-links", dist, "edgezoo-gemma", "edgezoo-tinyllama", "edgezoo-phi2"),
        cwd=tmp_path,
    )
    rows = json.loads(run(bin_folder / "edgezoo", "list", "--json", cwd=tmp_path))
    assert {r["distribution"] for r in rows} == {
        "edgezoo-gemma",
        "edgezoo-phi2",
        "edgezoo-tinyllama",
    }
    run(bin_folder / "python", "-c", SMALL_PHI, cwd=tmp_path)
    report = json.loads(
        run(
            *(bin_folder / "edgezoo", "convert", "./small", "--json"),
            *("--prefill", 4, "--kv-cache", 32),
            cwd=tmp_path,
        )
    )
    path = Path(report["path"])
    assert path.parent == tmp_path
    assert path.stat().st_size == report["manifest"]["artifact"]["size_bytes"]
    assert report["manifest"]["model"]["family"] == "phi2"


SMALL_PHI = """
from transformers import PhiConfig, PhiForCausalLM
config = PhiConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    vocab_size=300, max_position_embeddings=64,
)
PhiForCausalLM(config).save_pretrained("small")
"""
