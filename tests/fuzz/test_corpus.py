"""Every input that the fuzzer found worth keeping, through its parser once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Time of the processor for one input, and memory for all of a target's. A hang or a bomb is far
#: beyond both, a busy machine is not.
MOST_S, MOST_BYTES = 20, 1 << 30


@pytest.fixture(scope="module")
def replayed():
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fuzz.replay"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_no_kept_input_is_a_finding(replayed):
    findings = {f"{t}/{i}": text for t, r in replayed.items() for i, text in r["findings"].items()}
    assert findings == {}


def test_no_kept_input_takes_long(replayed):
    assert {t: r["slowest_s"] for t, r in replayed.items() if r["slowest_s"] > MOST_S} == {}


def test_no_kept_input_takes_much_memory(replayed):
    assert {t: r["grown_bytes"] for t, r in replayed.items() if r["grown_bytes"] > MOST_BYTES} == {}


def test_every_target_has_inputs_and_every_input_a_target(replayed):
    assert {target for target, told in replayed.items() if not told["inputs"]} == set()
    assert {p.name for p in (ROOT / "fuzz" / "corpus").iterdir()} == replayed.keys()
