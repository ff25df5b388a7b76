"""A matrix on one machine: what comes out, what is not made twice, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command import BIN, ENVIRONMENT

from edgezoo_core import recipe, sources, zoo
from edgezoo_core.shapes import Shapes

RECIPES = ("dynamic_int8", "mixed")
MIXED = 'name = "mixed"\ndefault = "fp16"\nembedding = "dynamic_int8"\n'


@pytest.fixture(scope="module")
def models(save_model):
    return [
        save_model("gemma", head_dim=32, vocab_size=256).folder,
        save_model("tinyllama", vocab_size=256).folder,
    ]


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Runs `edgezoo batch` on a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")

    def run(matrix, store, *arguments, code=0):
        done = subprocess.run(
            [BIN / "edgezoo", "batch", matrix, "--output", store, "--json", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**ENVIRONMENT, "EDGEZOO_CACHE": str(cache)},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout) if code in (0, 1, 3) and done.stdout else done.stderr

    return run


def write(folder, models, recipes=("dynamic_int8", "./mixed.toml"), more=""):
    (folder / "mixed.toml").write_text(MIXED)
    path = folder / "ZOO.toml"
    tables = "".join(f'[[models]]\ntarget = "{target}"\n{more}' for target in models)
    path.write_text(
        f"schema = 1\nrecipes = {json.dumps(recipes)}\nkv_cache = [32]\nprefill = [4]\n{tables}"
    )
    return path


@pytest.fixture(scope="module")
def made(models, batch, tmp_path_factory):
    """A matrix, the store that it was made into by two workers, and the report."""
    folder = tmp_path_factory.mktemp("made")
    matrix = write(folder, models)
    report = batch(matrix, folder / "store", "--workers", "2", "--report", folder / "page.html")
    return matrix, folder / "store", report


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def states(report):
    return {cell["name"]: cell["state"] for cell in report["cells"]}


def test_artifacts_are_those_of_single_conversions(models, made, tmp_path):
    matrix, store, report = made
    assert set(states(report).values()) == {"made"}
    assert len(report["cells"]) == 4
    for folder, name in zip(models, RECIPES, strict=True):
        single = zoo.convert_source(
            sources.obtain(str(folder)),
            recipe=recipe.resolve(str(matrix.parent / "mixed.toml") if name == "mixed" else name),
            shapes=Shapes((4,), 32),
            output=tmp_path,
        ).artifact.path
        assert digest(store / single.name) == digest(single)
    for cell in report["cells"]:
        for file in cell["files"].values():
            assert digest(store / file["name"]) == file["sha256"]
            assert (store / file["name"]).stat().st_size == file["size_bytes"]


def test_models_of_one_graph_trace_it_once(made):
    _, _, report = made
    traced = [cell["name"] for cell in report["cells"] if "trace" not in cell["from_cache"]]
    assert len(traced) == 2


def test_nothing_but_results_stays_in_the_store(made):
    _, store, report = made
    files = {f["name"] for cell in report["cells"] for f in cell["files"].values()}
    top = {p.name for p in store.iterdir()}
    assert top == files | {"records", "report.json", "report.html"}
    assert json.loads((store / "report.json").read_text()) == report


def test_page_shows_every_cell_and_loads_nothing(made):
    matrix, store, report = made
    page = (store / "report.html").read_text()
    assert page == (matrix.parent / "page.html").read_text()
    for cell in report["cells"]:
        assert cell["name"] in page
        assert cell["files"]["artifact"]["sha256"] in page
    assert "<script" not in page
    assert "src=" not in page
    assert "http" not in page.replace(report["store"], "")


def test_second_run_makes_nothing(made, batch):
    matrix, store, _ = made
    before = {p: p.stat().st_mtime_ns for p in (store / "records").iterdir()}
    assert set(states(batch(matrix, store)).values()) == {"already there"}
    assert {p: p.stat().st_mtime_ns for p in (store / "records").iterdir()} == before


def test_only_what_is_missing_or_damaged_is_made_again(made, batch):
    matrix, store, report = made
    lost, damaged, *_ = (cell["files"]["artifact"]["name"] for cell in report["cells"])
    before = {name: digest(store / name) for name in (lost, damaged)}
    (store / lost).unlink()
    content = bytearray((store / damaged).read_bytes())
    content[-1] ^= 1
    (store / damaged).write_bytes(content)
    plan = batch(matrix, store, "--dry-run")
    assert [c["state"] for c in plan["cells"]] == ["not done"] * 2 + ["already there"] * 2
    found = states(batch(matrix, store))
    assert list(found.values()) == ["made"] * 2 + ["already there"] * 2
    assert {name: digest(store / name) for name in (lost, damaged)} == before


def test_another_recipe_of_the_same_name_is_made_again(models, batch, tmp_path):
    matrix = write(tmp_path, models[1:], ["./mixed.toml"])
    (before,) = batch(matrix, tmp_path / "store")["cells"]
    (tmp_path / "mixed.toml").write_text(MIXED.replace("fp16", "none"))
    (after,) = batch(matrix, tmp_path / "store")["cells"]
    assert before["name"] == after["name"]
    assert after["state"] == "made"
    assert after["files"]["artifact"]["size_bytes"] > before["files"]["artifact"]["size_bytes"]


def test_failing_cells_stop_no_other(models, batch, tmp_path):
    matrix = write(tmp_path, [models[1], tmp_path / "nowhere"], ["dynamic_int8"])
    # 256 rows of 128 weights cannot be cut into blocks of 256.
    with matrix.open("a") as file:
        file.write(f'[[models]]\ntarget = "{models[0]}"\nrecipes = ["blocks.toml"]\n')
    (tmp_path / "blocks.toml").write_text('default = "dynamic_int4_block256"\n')
    report = batch(matrix, tmp_path / "store", code=1)
    made, blocks, nowhere = report["cells"]
    assert made["state"] == "made"
    assert (blocks["state"], nowhere["state"]) == ("failed", "failed")
    assert "block size does not divide" in blocks["error"]["message"]
    assert "no such folder" in nowhere["error"]["message"]
    assert nowhere["error"]["remedy"]
    assert nowhere["error"]["message"] in (tmp_path / "store" / "report.html").read_text()


def test_certificate_is_part_of_the_report(models, batch, tmp_path):
    matrix = write(tmp_path, models[1:], ["none"], "verify = true\n")
    (cell,) = batch(matrix, tmp_path / "store")["cells"]
    assert cell["verdict"] == "passes"
    manifest = json.loads((tmp_path / "store" / cell["files"]["manifest"]["name"]).read_text())
    assert manifest["verification"]["passes"]
    # Another that asks for less finds it, one that asks for as much does, too.
    assert states(batch(write(tmp_path, models[1:], ["none"]), tmp_path / "store")) == {
        cell["name"]: "already there"
    }


def test_budget_that_is_too_small_is_refused_before_work(models, batch, tmp_path):
    matrix = write(tmp_path, models)
    told = batch(matrix, tmp_path / "store", "--memory", "10MB", code=1)
    assert "10 MB may be used" in told
    assert not (tmp_path / "store").exists()


def test_interrupted_run_leaves_no_process_and_goes_on(models, batch, tmp_path):
    matrix, store = write(tmp_path, models), tmp_path / "store"
    cache = tmp_path / "cache"
    run = subprocess.Popen(
        [BIN / "edgezoo", "batch", matrix, "--output", store, "--workers", "2", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "EDGEZOO_CACHE": str(cache)},
    )
    while not list(store.glob(".edgezoo-batch-*")) and run.poll() is None:
        time.sleep(0.05)
    # To it alone, not to its group as a terminal sends it: nobody else ends its workers.
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert set(states(json.loads(out)).values()) <= {"made", "not done"}
    assert "not done" in states(json.loads(out)).values()
    assert not _processes_that_name(str(cache))
    report = batch(matrix, store)
    assert set(states(report).values()) <= {"made", "already there"}
    assert not list(store.glob(".edgezoo-batch-*"))


def _processes_that_name(text):
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                environment = (folder / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in command + environment:
                found.append(command)
    return found
