"""Workers that die, run out of memory, stand still, or lose their parent; and interrupts."""

from __future__ import annotations

import os
import resource
import signal
import time

import pytest
from faulty import FAILED, INTERRUPTED, KILLED, Bench, believes, end, hashes, is_deserted

#: A worker's first heavy import, and a write of each worker that writes.
TRACING = "worker import litert_torch #1"
SKELETON = "worker write head.bin compiler/stages:skeleton < compiler/__main__:_serve #1"


def importing(point):
    """The plan of a fault at an import."""
    return {"imports": [point.split()[2]]} if " import " in point else {}


def reached(bench, process, point):
    """Waits until a command has come to a point."""
    log = bench.folder / "log"
    while process.poll() is None:
        if log.exists() and f"{point}\n" in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("MemoryError", "memory ran out in"),
        ("bad_alloc", "memory ran out in a worker"),
        ("SIGKILL", "a worker was killed, most likely because memory ran out"),
        ("SIGTERM", "a worker was ended from outside, by SIGTERM"),
    ],
)
def test_worker_that_dies_is_told(what, message, make_bench, tuned):
    bench = make_bench("trace")
    bench.stand(tuned)
    ended = bench.fault(SKELETON, what, *bench.convert("--no-bundle", "--force"), code=FAILED)
    assert f"Error: {message}" in ended.err
    if what != "SIGTERM":
        assert "--jobs 1" in ended.err
    assert hashes(bench.out) == tuned.expected
    assert bench.hidden() == []


def test_worker_under_a_real_limit_of_memory_says_so(make_bench):
    bench = make_bench()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (600_000_000, before[1]))
    try:
        process = bench.start(*bench.convert("--no-bundle"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    ended = end(process)
    bench.check(ended, FAILED)
    assert "memory ran out" in ended.err
    assert hashes(bench.out) == {}


@pytest.mark.parametrize("point", [SKELETON, SKELETON.replace("head.bin", "program.json")])
def test_full_disk_of_a_worker_is_done_without_the_cache(point, make_bench):
    bench = make_bench("trace")
    # The cache in $TMPDIR is not watched: it has space.
    ended = bench.fault(point, "ENOSPC", *bench.convert("--no-bundle"), code=0)
    assert "converting without the cache" in ended.err
    assert "No space left on device" in ended.err
    assert hashes(bench.out)["m.tflite"] == bench.expected["m.tflite"]


@pytest.mark.parametrize("what", ["hold", "stall", "forever"])
def test_no_worker_outlives_a_killed_command(what, make_bench):
    bench = make_bench()
    plan = {"at": TRACING, "do": what, "log": str(bench.folder / "log"), **importing(TRACING)}
    process = bench.start(*bench.convert("--no-bundle"), **plan)
    reached(bench, process, TRACING)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    assert is_deserted(process.pid)
    assert hashes(bench.out) == {}


@pytest.mark.parametrize("what", ["hold", "stall", "forever"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_stands_still_is_left_at_once(what, number, make_bench):
    bench = make_bench("trace")
    log = bench.folder / "log"
    process = bench.start(*bench.convert("--no-bundle"), at=SKELETON, do=what, log=str(log))
    reached(bench, process, SKELETON)
    os.killpg(process.pid, number)  # as a terminal does, and a supervisor
    ended = end(process)
    bench.check(ended, INTERRUPTED if number == signal.SIGINT else 128 + number)
    assert bench.hidden() == []
    assert hashes(bench.out) == {}


def test_interrupt_while_the_libraries_are_imported(make_bench):
    bench = make_bench()
    command = bench.convert("--no-bundle")
    bench.fault(TRACING, "interrupt", *command, code=INTERRUPTED, **importing(TRACING))
    assert hashes(bench.out) == {}


@pytest.fixture(scope="module")
def bundle_points(finished, tuned, tmp_path_factory):
    """The points of a worker that replaces a bundle."""
    bench = Bench(tmp_path_factory.mktemp("bundling"), finished.checkpoint, finished.expected)
    bench.stand(finished)
    points = bench.points("bundle", bench.model, "--force")
    return [p for p in points if p.startswith("worker")]


@pytest.mark.parametrize(
    ("what", "call", "code"),
    [
        ("ENOSPC", "write .m.litertlm", FAILED),
        ("ENOSPC", "write .m.manifest.json", FAILED),
        ("MemoryError", "open .m.litertlm", FAILED),
        ("SIGKILL", "rename m.litertlm", FAILED),  # of the worker
        ("SIGKILL", "rename m.manifest.json", FAILED),
        ("interrupt", "write .m.litertlm", INTERRUPTED),
    ],
)
def test_fault_while_bundling_loses_no_bundle(what, call, code, bundle_points, bench, tuned):
    bench.stand(tuned)
    point = [p for p in bundle_points if f" {call}" in p][-1]
    bench.fault(point, what, "bundle", bench.model, "--force", code=code)
    assert hashes(bench.out)["m.tflite"] == tuned.expected["m.tflite"]
    assert hashes(bench.out)["m.litertlm"] == tuned.expected["m.litertlm"]
    assert believes(bench.out / "m.litertlm") == tuned.expected["m.litertlm"]


def test_killed_while_it_bundles_a_conversion_can_be_repeated(bundle_points, bench, tuned):
    bench.stand(tuned)
    point = next(p for p in bundle_points if " write .m.litertlm" in p)
    log = bench.folder / "log"
    process = bench.start(*bench.convert("--force"), at=point, do="hold", log=str(log))
    reached(bench, process, point)
    process.kill()
    bench.check(end(process), KILLED)
    # The earlier bundle is whole, but nobody takes it for the new file's.
    assert hashes(bench.out)["m.litertlm"] == tuned.expected["m.litertlm"]
    bench.rerun("--json")
    assert hashes(bench.out)["m.litertlm"] == bench.expected["m.litertlm"]
