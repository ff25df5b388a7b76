"""What the doctor finds, and that looking costs little and tells nothing secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from edgezoo_core.compiler import workers
from edgezoo_core.doctor import machine, packages

TOKEN = "hf_goodgoodgoodgoodgoodgoodgoodgoodgo"
DOCTOR = """
import sys
from edgezoo_core.cli import main
try:
    main(["doctor", "--json", *sys.argv[1:]])
finally:
    print(sorted({m.partition(".")[0] for m in sys.modules}), file=sys.__stderr__)
"""
HEAVY = ("jax", "litert_torch", "numpy", "safetensors", "tensorflow", "torch", "transformers")


@pytest.fixture
def doctor(hub, tmp_path):
    """Runs it as a process of its own: subject -> findings, exit code, all that it said."""

    def run(*arguments, token=None, **others):
        kept = {n: v for n, v in os.environ.items() if not n.upper().startswith(("HF_", "HTTP"))}
        variables = {**kept, **hub.environment(tmp_path / "home"), **others}
        if token:
            variables["HF_TOKEN"] = token
        done = subprocess.run(
            [sys.executable, "-c", DOCTOR, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=variables,
        )
        assert done.stdout, done.stderr
        found = {}
        for finding in json.loads(done.stdout):
            found.setdefault(finding["subject"], []).append(finding)
        return found, done.returncode, done.stdout + done.stderr

    return run


def install(site, name, version):
    info = site.folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def told(findings, level):
    return [f"{f.subject}: {f.found}" for f in findings if f.level == level]


def test_this_environment_is_sound_and_looking_imports_nothing_heavy(hub, doctor):
    hub.tokens.add(TOKEN)
    hub.uploads.writers[TOKEN] = {"acme"}
    found, code, said = doctor(token=TOKEN)
    assert code == 0, found
    assert found["token"][0]["found"] == "of mira, write"
    assert found["hub"][0]["level"] == "ok"
    assert {"python", "platform", "[convert]", "cores", "memory", "cache"} <= found.keys()
    assert {"plugin gemma", "plugin phi2", "plugin tinyllama"} <= found.keys()
    modules = said.splitlines()[-1]
    assert not any(f"'{name}'" in modules for name in HEAVY)
    assert TOKEN not in said


def test_every_fault_has_a_remedy(hub, doctor):
    found, code, said = doctor(token="hf_wrong", EDGEZOO_CACHE_LIMIT="much")
    assert code == 3
    assert found["token"][0]["level"] == "error"
    assert "hf auth login" in found["token"][0]["remedy"]
    assert found["cache"][0]["found"] == "EDGEZOO_CACHE_LIMIT is 'much', which is no size"
    assert all(f["remedy"] for findings in found.values() for f in findings if f["level"] != "ok")
    assert "hf_wrong" not in said


def test_hub_without_token_is_no_fault(hub, doctor):
    found, code, _ = doctor()
    assert code == 0
    assert (found["hub"][-1]["level"], found["token"][0]["level"]) == ("ok", "note")
    assert [r.path for r in hub.requests] == ["/api/whoami-v2"]


def test_hub_that_fails_or_is_gone_is_told(hub, doctor):
    hub.unavailable.add("api")
    found, code, _ = doctor()
    assert code == 3
    assert found["hub"][0]["found"] == f"{hub.url}: the hub answers with status 503"
    found, code, _ = doctor(HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 3
    told = "http://127.0.0.1:9: the hub cannot be reached ([Errno 111] Connection refused)"
    assert found["hub"][0]["found"] == told


@pytest.mark.parametrize("part", ["head", "body"])
def test_hub_that_trickles_is_told(hub, hub_server, doctor, part):
    hub.faults["api"] = iter([hub_server.Fault(trickles=part)])
    found, code, _ = doctor(HF_HUB_ETAG_TIMEOUT="1")
    assert (code, found["hub"][-1]["found"]) == (3, f"{hub.url}: the hub sends next to nothing")
    assert "HF_ENDPOINT" in found["hub"][-1]["remedy"]


def test_token_is_not_sent_in_the_open(doctor):
    found, code, said = doctor(token=TOKEN, HF_ENDPOINT="http://mirror.invalid")
    assert code == 3
    assert found["hub"][0]["found"] == "http://mirror.invalid would get your token unencrypted"
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("arguments", "others"), [(("--offline",), {}), ((), {"HF_HUB_OFFLINE": "1"})]
)
def test_offline_asks_no_hub(hub, doctor, arguments, others):
    _, code, _ = doctor(*arguments, token=TOKEN, **others)
    assert code == 0
    assert hub.requests == []


def test_broken_plugin_is_an_error(doctor, site):
    site.add("odd", body="raise RuntimeError('no')")
    path = os.pathsep.join(filter(None, (str(site.folder), os.environ.get("PYTHONPATH"))))
    found, code, _ = doctor("--offline", PYTHONPATH=path)
    assert code == 3
    assert "import-failed" in found["plugin odd"][0]["found"]


def test_known_faults_and_wrong_versions_are_found(site):
    install(site, "minijinja", "2.21.0")
    install(site, "ai-edge-torch", "0.7.2")
    install(site, "nvidia-cublas", "13.0")
    found = list(packages.examine())
    errors = told(found, "error")
    assert any(e.startswith("known fault: minijinja 2.21.0 prints True") for e in errors)
    assert "[convert]: minijinja 2.21.0, edgezoo needs <2.21,>=2.14" in errors
    notes = told(found, "note")
    assert any("ai-edge-torch 0.7.2 is an empty alias" in n for n in notes)
    assert any("nvidia-cublas 13.0 belongs to a CUDA build" in n for n in notes)
    assert any("minijinja is installed in several versions" in w for w in told(found, "warning"))


def test_what_is_not_installed_is_a_note_for_an_extra(monkeypatch):
    alone = ("edgezoo-core", "click", "huggingface-hub", "packaging", "pluggy", "rich")
    monkeypatch.setattr(packages, "_installed", lambda: dict.fromkeys(alone, "15.0"))
    found = list(packages._extras(packages._installed()))
    assert any(n.startswith("[convert]: not installed: accelerate") for n in told(found, "note"))


def test_folder_that_hides_a_library_is_told(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "numpy.py").touch()
    found = [f.found for f in packages._shadows(tmp_path)]
    assert len(found) == 2
    assert "torch" in found[0]


def test_little_memory_and_disk_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "available_bytes", lambda: 10**9)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage(0, 0, 10**9))
    monkeypatch.setenv("EDGEZOO_CACHE", str(tmp_path / "not" / "yet"))
    warnings = told(machine.examine(), "warning")
    assert "memory: 1.0 GB free" in warnings
    assert f"cache: {tmp_path / 'not' / 'yet'}, 1.0 GB free" in warnings


def test_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    found = machine._folder("cache", tmp_path / "file" / "cache", "elsewhere")
    assert (found.level, found.remedy) == ("error", "elsewhere")


def test_every_known_fault_is_a_specifier_with_a_remedy():
    from packaging.specifiers import SpecifierSet

    path = Path(packages.__file__).with_name("known.toml")
    for entry in packages.tomllib.loads(path.read_text(encoding="utf-8"))["known"]:
        SpecifierSet(entry.get("versions", ""))
        assert entry["level"] in ("note", "warning", "error")
        assert entry["remedy"]
