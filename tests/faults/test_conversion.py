"""A conversion that dies, or cannot write, at each of its calls that change something."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal

import pytest
from faulty import FAILED, INTERRUPTED, KILLED, Bench, believes, end, hashes

PLAIN = ("--no-bundle", "--force")
#: Calls that take space, or may be refused.
REFUSABLE = ("open", "write", "pwrite", "mkdir", "rename", "fsync", "truncate")


def is_refusable(point):
    """Whether a fault there is one of the output; the cache's are done without."""
    call, file = point.split()[1:3]
    is_ours = file.startswith((".m.", "m."))
    is_vital = "partial:_removed" not in point and "locks:sign" not in point
    return call in REFUSABLE and is_ours and is_vital


@pytest.fixture(scope="module")
def points(tuned, finished, tmp_path_factory):
    """The points of a conversion that replaces an earlier one."""
    bench = Bench(tmp_path_factory.mktemp("points"), finished.checkpoint, finished.expected)
    shutil.copytree(finished.cache, bench.cache)
    bench.stand(tuned)
    return bench.points(*bench.convert(*PLAIN))


def test_killed_at_any_call_it_leaves_the_earlier_file_or_the_new_one(points, bench, tuned):
    assert len(points) > 40
    seen = set()
    for point in points:
        bench.stand(tuned)
        bench.fault(point, "SIGKILL", *bench.convert(*PLAIN), code=KILLED)
        seen.add((hashes(bench.out)["m.tflite"], believes(bench.model)))
    old, new = tuned.expected["m.tflite"], bench.expected["m.tflite"]
    assert seen == {(old, old), (new, None), (new, new)}
    bench.rerun()


def test_killed_in_a_first_run_it_leaves_nothing_or_the_file(bench):
    seen = set()
    for point in bench.points(*bench.convert("--no-bundle")):
        for path in bench.out.glob("m.*"):
            path.unlink()
        if " rename " in point or point.startswith("command remove"):
            bench.fault(point, "SIGKILL", *bench.convert("--no-bundle"), code=KILLED)
            seen.add((hashes(bench.out).get("m.tflite"), believes(bench.model)))
    new = bench.expected["m.tflite"]
    assert seen == {(None, None), (new, None), (new, new)}
    bench.rerun()


def test_full_disk_at_any_write_is_told_and_keeps_the_earlier_file(points, bench, tuned):
    refusable = [p for p in points if is_refusable(p)]
    assert len(refusable) > 15
    for point in refusable:
        bench.stand(tuned)
        ended = bench.fault(point, "ENOSPC", *bench.convert(*PLAIN), code=FAILED)
        assert "No space left on device" in ended.err, point
        assert "free some space" in ended.err, point
        # The last rename alone comes after the file is in its place.
        if " rename m.manifest.json partial:rename < artifact:publish" not in point:
            assert hashes(bench.out) == tuned.expected, point
    bench.rerun()


@pytest.mark.parametrize("what", ["EIO", "EROFS", "EDQUOT", "EACCES", "ENOENT", "EMFILE"])
def test_other_faults_of_a_disk_are_told(what, points, bench, tuned):
    bench.stand(tuned)
    (point,) = (p for p in points if "streaming:_write" in p and p.endswith("#1"))
    ended = bench.fault(point, what, *bench.convert(*PLAIN), code=FAILED)
    assert os.strerror(getattr(errno, what)) in ended.err
    bench.rerun()


@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("interrupt", "utime entry.json"),
        ("interrupt", "pwrite .m.tflite"),
        ("interrupt", "fsync .m.tflite"),
        ("SIGTERM", "pwrite .m.tflite"),
        ("SIGHUP", "fsync .m.manifest"),
        ("MemoryError", "pwrite .m.tflite"),
        ("MemoryError", "fsync .m.tflite"),
    ],
)
def test_what_ends_it_leaves_no_temporary_file(what, call, points, bench, tuned):
    codes = {"SIGTERM": 143, "SIGHUP": 129, "interrupt": INTERRUPTED, "MemoryError": FAILED}
    bench.stand(tuned)
    point = next(p for p in points if f" {call}" in p)
    ended = bench.fault(point, what, *bench.convert(*PLAIN), code=codes[what])
    assert ended.out == ""
    assert bench.hidden() == []
    if what == "MemoryError":
        assert "memory ran out" in ended.err
    assert hashes(bench.out) == tuned.expected


def test_a_real_limit_of_file_sizes_does_what_the_simulation_does(bench, tuned):
    bench.stand(tuned)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    # The model does not fit; its manifest would.
    limit = tuned.model.stat().st_size // 2
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        process = bench.start(*bench.convert(*PLAIN))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    ended = end(process)
    bench.check(ended, FAILED)
    assert "File too large" in ended.err
    assert bench.hidden() == []
    assert hashes(bench.out) == tuned.expected
    bench.rerun()


def test_nohup_is_respected(bench):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = bench.start(
            *bench.convert("--no-bundle"),
            at="command rename m.tflite partial:rename < artifact:publish #1",
            do="SIGHUP",
        )
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert end(process).code == 0
