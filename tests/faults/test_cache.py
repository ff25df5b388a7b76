"""A cache that is damaged, taken away, locked, or of another time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from faulty import INTERRUPTED, end, hashes, stages

LOCKER = """
import sys
from pathlib import Path
from edgezoo_core.cache import Cache
with Cache(Path(sys.argv[1])).lock("skeleton", sys.argv[2]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def files(bench):
    """All files of the cache's entries, by kind and name."""
    return sorted(p for kind in ("trace", "skeleton") for p in bench.cache.glob(f"{kind}/*/*"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def of_another_version(path):
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "schema": 99}))


DAMAGES = [(flip, name) for name in ("head.bin", "program.json", "entry.json")]
DAMAGES += [(truncate, "head.bin"), (of_another_version, "entry.json")]


@pytest.mark.parametrize(("damage", "name"), DAMAGES)
def test_damaged_skeleton_is_told_and_made_anew(damage, name, bench):
    (path,) = bench.cache.glob(f"skeleton/*/{name}")
    damage(path)
    done = bench.run(*bench.convert("--no-bundle"))
    assert done.code == 0, done.err
    assert "is damaged and not used" in done.err
    assert stages(done).count("quantizing the graph") == 1
    assert hashes(bench.out)["m.tflite"] == bench.expected["m.tflite"]
    bench.run("cache", "verify")
    assert bench.run("cache", "verify").code == 0


def test_every_flipped_byte_of_an_entry_is_found(bench):
    for path in files(bench):
        before = path.read_bytes()
        flip(path)
        found = bench.run("cache", "verify", "--json")
        assert found.code == 1, path
        assert sum(bool(e["fault"]) for e in json.loads(found.out)) == 1
        path.write_bytes(before)
    assert bench.run("cache", "verify").code == 0


@pytest.mark.parametrize("kind", ["trace", "skeleton"])
def test_cache_cleared_while_it_is_used_is_done_without(kind, make_bench):
    bench = make_bench("trace", "skeleton")
    entry = next((bench.cache / kind).iterdir())
    # The command has found the entry, and stops just before it opens its files.
    at = f"command utime entry.json cache/__init__:get < {FINDERS[kind]} #1"
    log = bench.folder / "log"
    process = bench.start(*bench.convert("--no-bundle"), at=at, do="forever", log=str(log))
    while not log.exists() or f"{at}\n" not in log.read_text():
        time.sleep(0.02)
    time.sleep(0.2)
    shutil.rmtree(entry)
    os.kill(process.pid, signal.SIGCONT)
    done = end(process)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert hashes(bench.out)["m.tflite"] == bench.expected["m.tflite"]


FINDERS = {"trace": "cache/__init__:find", "skeleton": "compiler/__init__:_skeleton"}


def test_cache_that_is_a_file_is_done_without(make_bench):
    bench = make_bench()
    bench.cache.rmdir()
    bench.cache.touch()
    log = str(bench.folder / "log")
    process = bench.start(
        *bench.convert("--no-bundle"),
        at="worker import litert_torch #1",
        do="interrupt",
        imports=["litert_torch"],
        log=log,
    )
    ended = end(process)  # it got as far as tracing
    assert ended.code == INTERRUPTED
    assert "converting without the cache" in ended.err


def test_who_holds_a_lock_is_told_and_one_interrupt_gets_out(make_bench):
    bench = make_bench("trace")
    bench.points(*bench.convert("--no-bundle"))
    (lock,) = bench.cache.glob("locks/skeleton-*")
    shutil.rmtree(bench.cache / "skeleton")
    key = lock.stem.partition("-")[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCKER, bench.cache, key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGSTOP)
    try:
        process = bench.start(*bench.convert("--no-bundle", "--force"), log=str(bench.folder / "p"))
        while lock.name.replace(key, "KEY") not in read(bench.folder / "p"):
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        ended = end(process)
        bench.check(ended, INTERRUPTED)
        told = f"waiting for process {holder.pid}, which compiles the same model"
        assert told in ended.err
    finally:
        holder.kill()
        holder.communicate()
    bench.rerun()


def read(path):
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("years", [-20, 20])
def test_clock_that_jumps_changes_nothing(years, make_bench):
    bench = make_bench("trace")
    seconds = years * 365 * 24 * 3600
    done = bench.run(*bench.convert("--no-bundle"), clock_s=seconds, after_s=0.2)
    bench.check(done, 0)
    assert hashes(bench.out)["m.tflite"] == bench.expected["m.tflite"]
    # What is from another time is found again, listed and sound.
    again = bench.run(*bench.convert("--no-bundle", "--force"))
    assert "quantizing the graph" not in stages(again)
    assert "2 entries" in bench.run("cache", "list").out
    assert bench.run("cache", "verify").code == 0


def test_files_from_the_future_are_used_and_swept(bench):
    future = time.time() + 10**9
    left = bench.cache / "partial" / f"1-{0:016x}"
    left.mkdir(parents=True)
    bench.out.mkdir()
    partial = bench.out / ".m.tflite.0123abcd.output.partial"
    partial.touch()
    for path in (*files(bench), left, partial):
        os.utime(path, (future, future))
    done = bench.run(*bench.convert("--no-bundle"))
    assert done.code == 0, done.err
    assert stages(done)[:2] == ["looking into the cache", "streaming the weights"]
    assert not partial.exists()
    bench.run("cache", "clear")
    assert bench.hidden() == []
