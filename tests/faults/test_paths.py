"""Outputs that cannot be, streams that are closed or full, and other commands that write."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from command import BIN, ENVIRONMENT
from faulty import FAILED, INTERRUPTED, KILLED, end, hashes, names


@pytest.fixture
def unwritable(tmp_path):
    """A folder that cannot be written: to root, too."""
    if os.geteuid() == 0:
        return Path("/sys")
    folder = tmp_path / "unwritable"
    folder.mkdir(mode=0o555)
    return folder


def converted_to(bench, output, *options):
    return bench.run(
        "convert", bench.checkpoint, *bench.convert()[2:-2], "--output", output, *options
    )


def test_folder_that_cannot_be_written_is_told_before_any_work(bench, unwritable):
    for output in (unwritable, unwritable / "m.tflite", unwritable / "new" / "m.tflite"):
        ended = converted_to(bench, output, "--no-bundle")
        bench.check(ended, FAILED)
        assert "cannot be written" in ended.err
        assert "streaming" not in ended.err


@pytest.mark.parametrize("output", ["file/m.tflite", "folder.tflite", "fifo.tflite", "/dev/full"])
def test_what_is_in_the_way_is_told_before_any_work(output, bench):
    (bench.folder / "file").touch()
    (bench.folder / "folder.tflite").mkdir()
    os.mkfifo(bench.folder / "fifo.tflite")
    before = names(bench.folder)
    ended = converted_to(bench, bench.folder / output, "--no-bundle", "--force")
    bench.check(ended, FAILED)
    assert "streaming" not in ended.err
    assert names(bench.folder) == before


@pytest.mark.parametrize("length", [240, 250, 300])
def test_name_that_is_too_long_is_told(length, bench):
    ended = converted_to(bench, bench.out / ("n" * length + ".tflite"), "--no-bundle")
    bench.check(ended, FAILED)
    assert re.search("Fix: (choose|pass) a shorter ", ended.err)
    assert names(bench.out) == []


@pytest.mark.parametrize("name", [b"\xff \xc3\xa9\n.tflite", b"a:b.tflite"])
def test_name_that_no_manifest_can_hold_is_told_before_any_work(bench, name):
    output = os.fsdecode(os.fsencode(bench.out) + b"/" + name)
    ended = converted_to(bench, output, "--no-bundle")
    bench.check(ended, FAILED)
    assert "a manifest can hold" in ended.err


def test_output_may_have_a_name_beyond_ascii(bench):
    ended = converted_to(bench, bench.out / "modèle\u3000一.tflite", "--no-bundle")
    assert ended.code == 0, ended.err
    assert bench.expected["m.tflite"] in hashes(bench.out).values()


def test_link_as_output_is_followed(bench):
    bench.out.mkdir()
    there = bench.folder / "there"
    there.mkdir()
    (bench.out / "m.tflite").symlink_to(there / "x.tflite")
    bench.check(bench.run(*bench.convert("--no-bundle")), 0)
    assert (bench.out / "m.tflite").is_symlink()
    assert names(there) == ["x.manifest.json", "x.tflite"]
    assert hashes(there)["x.tflite"] == bench.expected["m.tflite"]


def test_litert_engine_on_a_full_disk_leaves_nothing(make_bench, tuned):
    bench = make_bench()
    bench.stand(tuned)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        process = bench.start(*bench.convert("--no-bundle", "--force", "--engine", "litert"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    bench.check(end(process), FAILED)
    assert hashes(bench.out) == tuned.expected
    assert bench.hidden() == []


def test_reproduction_leaves_nothing_but_when_it_is_killed_and_then_until_the_next(bench, finished):
    bench.stand(finished)
    manifest = bench.out / "m.manifest.json"
    recorded = json.loads(manifest.read_text())
    del recorded["bundle"]  # to make it again takes longer, and shows nothing more
    manifest.write_text(json.dumps(recorded))
    command = ("reproduce", manifest)
    point = next(p for p in bench.points(*command) if "pwrite .m.tflite" in p)
    bench.fault(point, "interrupt", *command, code=INTERRUPTED)
    assert bench.hidden() == []
    bench.fault(point, "ENOSPC", *command, code=FAILED)
    bench.fault(point, "SIGKILL", *command, code=KILLED)
    assert len(bench.hidden()) == 1
    bench.check(bench.run(*command), 0)
    assert bench.hidden() == []


def test_killed_while_it_writes_a_plugin_it_leaves_no_half_of_one(bench):
    command = ("new-plugin", "mine", "--output", bench.out)
    points = [p for p in bench.points(*command) if " rename " in p or " write " in p]
    (bench.out / "edgezoo-mine").rename(bench.folder / "whole")
    for point in points[-2:]:
        bench.fault(point, "SIGKILL", *command, code=KILLED)
        assert not (bench.out / "edgezoo-mine").exists()
    assert len(bench.hidden()) == 2 - 1, "one goes when the next begins"
    bench.fault(points[-1], "ENOSPC", *command, code=FAILED)
    bench.check(bench.run(*command), 0)
    assert names(bench.out) == ["edgezoo-mine"]


def shell(text, **environment):
    return subprocess.run(
        ["bash", "-c", text],
        capture_output=True,
        text=True,
        check=False,
        env={**ENVIRONMENT, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
    )


def test_reader_that_goes_away_is_no_crash():
    done = shell("edgezoo list --available --json | head -c 1; echo ${PIPESTATUS[0]}")
    assert done.stdout in ("[0\n", "[1\n")
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["list", "list --json", "cache path", "--help"])
def test_full_stdout_is_told(command):
    done = shell(f"edgezoo {command} > /dev/full")
    assert done.returncode == FAILED
    assert "Traceback" not in done.stderr
    assert "Error: No space left on device\nFix: " in done.stderr


def test_closed_streams_do_not_reach_into_the_model(bench):
    words = " ".join(map(str, bench.convert("--no-bundle")))
    done = shell(f"edgezoo {words} <&- >&- 2>&-", EDGEZOO_CACHE=str(bench.cache))
    assert done.returncode == 0
    assert hashes(bench.out)["m.tflite"] == bench.expected["m.tflite"]


def test_no_folder_for_temporary_files_is_told(tmp_path):
    code = (
        "import tempfile, sys; missing = sys.argv.pop();"
        "tempfile._candidate_tempdir_list = lambda: [missing];"
        "from edgezoo_core.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", "./any", str(tmp_path / "missing")],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == FAILED
    assert "Error: No usable temporary directory" in done.stderr
    assert "Traceback" not in done.stderr
