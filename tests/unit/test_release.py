"""What comes along with edgezoo: its licences, and the bills of materials."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def licences():
    return load("licences")


@pytest.fixture(scope="module")
def release(licences):
    return load("release")


def load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # release imports licences
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("said", "licence", "fault"),
    [
        ("MIT License", "MIT", ""),
        ("Apache-2.0 AND CNRI-Python", "Apache-2.0 AND CNRI-Python", ""),
        ("Apache-2.0 AND (MIT OR Zlib)", "Apache-2.0 AND MIT AND Zlib", ""),
        ("Apache Software License; BSD License", "Apache-2.0 AND BSD-3-Clause", ""),
        ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0", ""),
        ("GPL-3.0-only", "GPL-3.0-only", "odd 1.0: GPL-3.0-only"),
        ("MIT AND AGPL-3.0", "MIT AND AGPL-3.0", "odd 1.0: AGPL-3.0"),
        ("UNKNOWN", "UNKNOWN", "odd 1.0: UNKNOWN"),
    ],
)
def test_licence_is_judged_part_by_part(licences, said, licence, fault):
    rules = licences.tomllib.loads(licences.RULES.read_text(encoding="utf-8"))
    row = licences._row("odd", {"Version": "1.0", "License": said}, rules)
    assert (row.licence, row.fault) == (licence, fault)
    assert bool(row.note) == ("MPL" in licence)


def test_licence_that_was_read_by_hand_is_read_again(licences, monkeypatch):
    rules = licences.tomllib.loads(licences.RULES.read_text(encoding="utf-8"))
    found = {"Version": "1", "License": "UNKNOWN"}
    assert licences._row("torchao", found, rules).fault == ""
    monkeypatch.setattr(licences, "_texts", lambda name, file: ["Another licence"])
    assert "another than it was" in licences._row("torchao", found, rules).fault


def test_what_comes_along_follows_extras_and_leaves_developers_tools_out(licences):
    (phi2,) = (p for p in licences.PROJECTS if p.name == "edgezoo-phi2")
    names = licences.closure(licences.required(phi2))
    assert {"torch", "litert-torch", "huggingface-hub", "click"} <= names
    assert not names & {"lm-eval", "tensorflow", "ray", "ruff", "edgezoo-core"}
    everything = licences.closure(licences.required(licences.ROOT))
    assert {"lm-eval", "tensorflow", "ray", "litert-lm-api"} <= everything
    assert "ruff" not in everything


def test_bill_of_a_distribution_is_a_part_of_the_environments(release):
    def component(name):
        where = [{"type": "vcs", "url": "file:///home/me/clone"}]
        return {"name": name, "bom-ref": f"{name}==1", "externalReferences": where}

    names = ("Click", "edgezoo-core", "edgezoo-phi2", "ruff")
    bill = {
        "metadata": {"tools": {}},
        "components": [component(n) for n in names],
        "dependencies": [
            {"ref": "edgezoo-phi2==1", "dependsOn": ["edgezoo-core==1"]},
            {"ref": "edgezoo-core==1", "dependsOn": ["Click==1", "ruff==1"]},
            {"ref": "Click==1"},
            {"ref": "ruff==1", "dependsOn": ["Click==1"]},
        ],
    }
    found = release.narrowed(bill, "edgezoo-phi2", {"click", "edgezoo-core"})
    assert found["metadata"]["component"]["name"] == "edgezoo-phi2"
    assert [c["name"] for c in found["components"]] == ["Click", "edgezoo-core"]
    assert found["dependencies"] == [
        {"ref": "edgezoo-phi2==1", "dependsOn": ["edgezoo-core==1"]},
        {"ref": "edgezoo-core==1", "dependsOn": ["Click==1"]},
        {"ref": "Click==1"},
    ]
    assert str(found).count("file:///home/me/clone") == 1, "Click's own"
    with pytest.raises(SystemExit, match="not installed here: torch"):
        release.narrowed(bill, "edgezoo-phi2", {"torch"})
