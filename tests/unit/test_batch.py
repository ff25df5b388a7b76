"""The store, the order of the steps, and what is said of them; nothing is converted."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import replace

import pytest

from edgezoo_core.batch import report as reports
from edgezoo_core.batch.forecast import Forecast, Planned
from edgezoo_core.batch.matrix import Cell
from edgezoo_core.batch.on_ray import _differences
from edgezoo_core.batch.running import Run
from edgezoo_core.batch.store import Store
from edgezoo_core.batch.tasks import Matrix, Refused, Task
from edgezoo_core.errors import BatchError, CheckpointError
from edgezoo_core.recipe import resolve
from edgezoo_core.shapes import Shapes

RECORD = {
    "seconds": 1.5,
    "peak_memory_bytes": 7 * 10**8,
    "from_cache": ["trace"],
    "verification": None,
    "warnings": [],
    "made": {"host": "here", "node": "local", "process": 1, "at": "2026-01-01T00:00:00+00:00"},
}
OPTIONS = {
    "prefill_lengths": [4],
    "kv_cache_length": 32,
    "kv_layout": "transposed",
    "mask_as_input": True,
}


def task(name="small_fp16_ekv32", source="a", graph="g", **changes):
    made = Task(
        name=name,
        target="org/small",
        commit="c0ffee",
        family=None,
        card=None,
        adapters=(),
        recipe=resolve("fp16"),
        shapes=Shapes((4,), 32),
        is_verified=False,
        with_bundle=False,
        inputs={"recipe": "fp16", "options": OPTIONS},
        source=source,
        graph=graph,
    )
    return replace(made, **changes)


def planned(*arguments, **changes):
    forecast = Forecast(10**9, 1.0, 0, 10, 0, "mit", is_gated=False, findings=())
    return Planned(task(*arguments, **changes), forecast)


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "memory":
        return Store(f"memory://zoo-{tmp_path.name}")
    return Store(str(tmp_path / "zoo"))


def publish(store, asked, content=b"weights"):
    with store.scratch() as folder:
        path = folder / f"{asked.name.rpartition('/')[2]}.tflite"
        path.write_bytes(content)
        return store.publish(asked, {"artifact": path}, RECORD)


def test_what_was_published_is_found_as_it_was(store):
    assert store.find(task()) is None
    record = publish(store, task())
    assert store.find(task()) == json.loads(json.dumps(record))
    assert record["files"]["artifact"]["name"] == "small_fp16_ekv32.tflite"


def test_files_of_a_folder_go_there(store):
    record = publish(store, task("tuned/deep/small_fp16_ekv32"))
    assert record["files"]["artifact"]["name"] == "tuned/deep/small_fp16_ekv32.tflite"
    assert store.find(task("tuned/deep/small_fp16_ekv32"))


def test_record_of_other_inputs_or_less_does_not_count(store):
    publish(store, task())
    assert store.find(task(inputs={"recipe": "other", "options": OPTIONS})) is None
    assert store.find(task(is_verified=True)) is None
    assert store.find(task(with_bundle=True)) is None
    publish(store, task(is_verified=True, with_bundle=True))
    assert store.find(task())


def test_record_without_its_files_does_not_count(store):
    publish(store, task())
    store._remove("small_fp16_ekv32.tflite")
    assert store.find(task()) is None


def test_record_that_is_none_does_not_count(store):
    for text in ("{", "[]", "null", '{"schema": 1}'):
        store.write("records/small_fp16_ekv32.json", text)
        assert store.find(task()) is None


def test_record_is_gone_while_its_files_are_replaced(store, monkeypatch):
    publish(store, task())

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(store, "_put", fail)
    with pytest.raises(BatchError, match="no space"):
        publish(store, task(), b"other")
    assert store.find(task()) is None


def test_protocol_that_is_unknown_is_told():
    with pytest.raises(BatchError, match="nowhere") as e:
        Store("nowhere://bucket")
    assert "fsspec" in e.value.remedy


class Recorder:
    """An engine that notes what it is given, and ends it when it is told to."""

    def __init__(self, *, is_shared_disk):
        self.is_shared_disk = is_shared_disk
        self.begun = []
        self.fail = set()

    def submit(self, stage, planned, request):
        self.begun.append((stage, planned.task.name))
        future = Future()
        if (stage, planned.task.name) in self.fail:
            future.set_exception(CheckpointError("gated", remedy="log in"))
        else:
            record = {**RECORD, "files": {}}
            future.set_result({"is_new": True, "record": record} if stage == "make" else None)
        return future

    def close(self):
        pass


def run_of(store, *left):
    tasks = tuple(p.task for p in left)
    return Run(Matrix(tasks, {}, ()), store, 1, list(left))


CELLS = (
    planned("a1", "a", "g1"),
    planned("a2", "a", "g1"),
    planned("a3", "a", "g2"),
    planned("b1", "b", "g3"),
)


def test_a_download_comes_before_traces_and_these_before_the_rest(store):
    engine, run = Recorder(is_shared_disk=True), run_of(store, *CELLS)
    run.make(engine)
    assert sorted(engine.begun[:2]) == [("fetch", "a1"), ("fetch", "b1")]
    assert sorted(engine.begun[2:5]) == [("make", "a1"), ("make", "a3"), ("make", "b1")]
    assert engine.begun[5:] == [("make", "a2")]


def test_nodes_download_for_themselves(store):
    engine, run = Recorder(is_shared_disk=False), run_of(store, *CELLS)
    run.make(engine)
    assert engine.begun == [("make", name) for name in ("a1", "a3", "b1", "a2")]


def test_failed_download_fails_the_models_cells_and_no_other(store):
    engine, run = Recorder(is_shared_disk=True), run_of(store, *CELLS)
    engine.fail = {("fetch", "a1")}
    run.make(engine)
    assert {o.name: o.state for o in run.all()} == {
        **dict.fromkeys(("a1", "a2", "a3"), "failed"),
        "b1": "made",
    }


def test_failed_cell_holds_up_no_other(store):
    engine, run = Recorder(is_shared_disk=False), run_of(store, *CELLS)
    engine.fail = {("make", "a1")}
    run.make(engine)
    states = {o.name: o.state for o in run.all()}
    assert states == {"a1": "failed", "a2": "made", "a3": "made", "b1": "made"}


def test_artifact_that_went_to_another_disk_is_told(tmp_path):
    engine, run = Recorder(is_shared_disk=False), run_of(Store(str(tmp_path)), planned())
    lost = {"name": "elsewhere.tflite", "size_bytes": 1, "sha256": ""}
    future = Future()
    future.set_result({"is_new": True, "record": {**RECORD, "files": {"artifact": lost}}})
    engine.submit = lambda *_: future
    run.make(engine)
    (outcome,) = run.all()
    assert outcome.state == "failed"
    assert "all nodes see" in outcome.error.remedy


def test_page_shows_what_went_wrong_and_obeys_none_of_it(store):
    run = run_of(store, planned())
    error = CheckpointError("<script>alert(1)</script>", remedy="log in & retry")
    run.matrix = replace(run.matrix, refused=(Refused(Cell("org/gated"), error),))
    report = reports.to_json(run)
    assert report["states"] == {"not done": 1, "failed": 1}
    page = reports.to_html(report)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "log in &amp; retry" in page
    assert "org/gated, the default recipe" in page


def test_differences_of_versions_are_named():
    here = {
        "core": {"version": "1", "source": "x"},
        "plugin": {"distribution": "edgezoo-a", "version": "2"},
        "libraries": {"torch": "2.13.0", "numpy": "2.1"},
    }
    assert _differences(here, here) == []
    there = {
        "core": {"version": "1", "source": "y"},
        "plugin": {"distribution": "edgezoo-a", "version": "3"},
        "libraries": {"torch": "2.13.1"},
    }
    assert _differences(here, there) == [
        "torch 2.13.1 (here 2.13.0)",
        "numpy absent (here 2.1)",
        "the files of edgezoo-core 1, or what it requires",
        "edgezoo-a 3 (here 2)",
    ]
    assert _differences(here, {})[-2:] == [
        "edgezoo-core (absent there)",
        "edgezoo-a (absent there)",
    ]
