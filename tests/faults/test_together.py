"""Several processes at once: one output is written by one of them, one trace is made once."""

from __future__ import annotations

import os
import signal
import time

import pytest
from faulty import FAILED, end, hashes, stages

STREAMING = "command pwrite .m.tflite.TOKEN.output.partial"
STREAMING += " conversion/streaming:_write < conversion/streaming:write #1"


@pytest.fixture
def stopped(bench):
    """A conversion that stands still while it streams the weights."""
    log = bench.folder / "log"
    command = bench.convert("--no-bundle", "--force")
    process = bench.start(*command, at=STREAMING, do="forever", log=str(log))
    while not log.exists() or STREAMING not in log.read_text():
        time.sleep(0.02)
    time.sleep(0.2)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdout, process.stderr):
        stream.close()
    process.wait()


@pytest.mark.parametrize("option", ["--no-bundle", "--force"])
def test_second_conversion_to_one_output_is_refused_at_once(option, bench, stopped):
    second = bench.run(*bench.convert("--no-bundle", option))
    assert second.code == FAILED
    assert f"Error: process {stopped.pid} is writing m in" in second.err
    assert "Fix: wait until it is done" in second.err
    os.kill(stopped.pid, signal.SIGCONT)
    first = end(stopped)
    bench.check(first, 0)
    assert hashes(bench.out)["m.tflite"] == bench.expected["m.tflite"]
    assert bench.hidden() == []


def test_what_is_being_replaced_is_neither_verified_nor_bundled(bench, tuned, stopped):
    bench.stand(tuned)
    for command in ("verify", "bundle"):
        refused = bench.run(command, bench.model)
        bench.check(refused, FAILED)
        assert f"process {stopped.pid} is writing m" in refused.err
    os.killpg(stopped.pid, signal.SIGKILL)
    stopped.wait()
    bench.rerun()


def test_folder_that_vanishes_while_it_is_written_to_is_told(bench, stopped):
    for path in bench.out.iterdir():
        path.unlink()
    bench.out.rmdir()
    os.kill(stopped.pid, signal.SIGCONT)
    ended = end(stopped)
    bench.check(ended, FAILED)
    assert "No such file or directory" in ended.err
    bench.rerun()


def test_two_that_race_for_one_output_give_one_whole_file(bench, tuned):
    bench.stand(tuned)
    both = [bench.start(*bench.convert("--no-bundle", "--force")) for _ in range(2)]
    ended = [end(process) for process in both]
    for each in ended:
        bench.check(each, 0, FAILED)
    assert 0 in [each.code for each in ended]
    assert hashes(bench.out)["m.tflite"] == bench.expected["m.tflite"]
    assert bench.hidden() == []


def test_two_outputs_of_one_model_share_what_is_made_once(make_bench):
    bench = make_bench("trace")
    outputs = [bench.out / f"{name}.tflite" for name in "ab"]
    command = bench.convert()[:-1]
    both = [bench.start(*command, output, "--no-bundle") for output in outputs]
    ended = [end(process) for process in both]
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]
    assert sum("quantizing the graph" in stages(each) for each in ended) == 1
    found = hashes(bench.out)
    assert found["a.tflite"] == found["b.tflite"] == bench.expected["m.tflite"]


def test_cleared_cache_does_not_disturb_who_fills_it(make_bench):
    bench = make_bench("trace")
    at = "worker write program.json compiler/stages:skeleton < compiler/__main__:_serve #1"
    log = bench.folder / "log"
    process = bench.start(*bench.convert("--no-bundle"), at=at, do="forever", log=str(log))
    while not log.exists() or at not in log.read_text():
        time.sleep(0.02)
    assert bench.run("cache", "clear").code == 0
    os.killpg(process.pid, signal.SIGCONT)
    bench.check(end(process), 0)
    assert hashes(bench.out)["m.tflite"] == bench.expected["m.tflite"]
