"""Downloads under every fault that a hub, a network or a machine has, with the real client.

Each fault ends in a sentence and a remedy, leaves no file that looks whole, takes nothing away that
was there, and a rerun succeeds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from hub_server import Fault

REPO = "acme/tiny"
WEIGHTS = "model.safetensors"
SIZE = 1 << 20
CONTENT = bytes(range(256)) * (SIZE // 256)
FILES = {"config.json": b'{"model_type": "llama"}', WEIGHTS: CONTENT}
SHA256 = hashlib.sha256(CONTENT).hexdigest()
#: The shortest timeouts that the client's variables can say.
SHORT = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
RESET = Fault()
STALL = Fault(is_stalled=True)
PAGE = Fault(page=b"<html><body>Welcome! Please log in.</body></html>")
EDGEZOO = Path(sys.executable).with_name("edgezoo")


def contents(answer):
    assert answer.error is None
    return {str(p.relative_to(answer.folder)): p.read_bytes() for p in answer.folder.iterdir()}


def blobs(client):
    return client.home / "hub" / "models--acme--tiny" / "blobs"


def partial(client):
    return blobs(client) / f"{SHA256}.edgezoo.incomplete"


def lock(client):
    return client.home / "hub" / ".locks" / "models--acme--tiny" / f"{SHA256}.lock"


def keep_half(client):
    """Leaves what a process leaves that was killed half-way."""
    partial(client).parent.mkdir(parents=True, exist_ok=True)
    partial(client).write_bytes(CONTENT[: SIZE // 2])


def wait_for_half(client):
    """What was sent so far is being written."""
    while not partial(client).exists() or partial(client).stat().st_size < SIZE // 2:
        time.sleep(0.01)


def ranges(hub):
    return [r.headers.get("range") for r in hub.requests if r.path.startswith("/storage/")]


def waits(answer):
    return [stage for stage in answer.stages if stage.startswith("waiting")]


# Faults that pass.


@pytest.mark.parametrize("part", ["api", "resolve", "storage"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=503), "answers with status 503"),
        (RESET, "broke the connection off"),
        (STALL, "has gone silent"),
    ],
    ids=["503", "reset", "stall"],
)
def test_fault_that_passes_is_waited_for(hub, client, part, fault, said):
    hub.publish(REPO, FILES)
    hub.faults[part] = iter([fault])
    answer = client.pull(REPO, **SHORT)
    assert contents(answer) == FILES
    (wait,) = waits(answer)
    assert said in wait
    assert "try 2 of 5" in wait


def test_wait_is_told_with_its_cause_and_length(hub, client):
    hub.publish(REPO, FILES)
    hub.faults["storage"] = iter([Fault(status=429, retry_after="1"), Fault(status=500)])
    answer = client.pull(REPO, EDGEZOO_HUB_PATIENCE="2")
    assert contents(answer) == FILES
    assert waits(answer) == [
        "waiting, as the hub's storage at localhost answers with status 429: try 2 of 5 in 1 s",
        "waiting, as the hub's storage at localhost answers with status 500: try 3 of 5 in 2 s",
    ]


def test_every_connection_may_break_as_long_as_each_brings_something(hub, client):
    hub.publish(REPO, FILES)
    part = SIZE // 8
    broken = [Fault(after=part), Fault(is_stalled=True, after=part)] * 3
    hub.faults["storage"] = iter(broken)
    answer = client.pull(REPO, **SHORT)
    assert contents(answer) == FILES
    assert ["try 2 of 5" in wait for wait in waits(answer)] == [True] * 6
    # A reset takes along what the client has not read yet, and nothing else is sent twice.
    assert hub.sent_bytes < 1.5 * SIZE


def test_trickle_is_no_download(hub, client):
    hub.publish(REPO, FILES)
    hub.faults["storage"] = iter([Fault(after=SIZE, pause_s=0.5)])
    answer = client.pull(REPO, **SHORT)
    assert contents(answer) == FILES
    (wait,) = waits(answer)
    who = "the hub's storage at localhost"
    assert wait.startswith(f"waiting, as {who} sends next to nothing: try 2 of 5")


@pytest.mark.parametrize(
    ("part", "faults", "who"),
    [
        ("api", [Fault(trickles="head")], "the hub"),
        ("resolve", [Fault(trickles="head")], "the hub"),
        # The first request asks where the file is, the second for config.json itself.
        ("resolve", [None, Fault(trickles="body")], "the hub"),
        ("storage", [Fault(trickles="head")], "the hub's storage at localhost"),
    ],
)
def test_trickle_is_no_answer(hub, client, part, faults, who):
    files = {**FILES, "config.json": b" " * 1000}  # of which something came
    hub.publish(REPO, files)
    hub.faults[part] = iter(faults)
    answer = client.pull(REPO, **SHORT)
    assert contents(answer) == files
    (wait,) = waits(answer)
    assert wait.startswith(f"waiting, as {who} sends next to nothing: try 2 of 5")


def test_trickle_that_stays_is_told(hub, client):
    hub.publish(REPO, FILES)
    hub.faults["resolve"] = itertools.repeat(Fault(trickles="head"))
    answer = client.pull(REPO, **SHORT)
    assert "failed: the hub sends next to nothing (tried 5 times)" in answer.error
    assert answer.remedy.startswith("run the command again")


def test_trickle_is_not_waited_for_where_there_is_a_copy(hub, client):
    hub.publish(REPO, FILES)
    client.pull(REPO)
    hub.faults["api"] = itertools.repeat(Fault(trickles="body"))
    answer = client.pull(REPO, **SHORT)
    assert contents(answer) == FILES
    assert waits(answer) == []


# Faults that stay.


@pytest.mark.parametrize(
    ("part", "fault", "said"),
    [
        ("api", Fault(status=429), "the hub answers with status 429 (tried 5 times)"),
        ("api", RESET, "the hub broke the connection off (tried 5 times)"),
        ("api", PAGE, "a web page or the like came in place of what was asked of the hub"),
        ("resolve", Fault(status=500), "the hub answers with status 500 (tried 5 times)"),
        ("resolve", PAGE, "a web page or the like came in place of what was asked of the hub"),
        ("storage", Fault(status=503), "storage at localhost answers with status 503 (tried 5"),
        ("storage", STALL, "storage at localhost has gone silent (tried 5 times)"),
        ("storage", RESET, "storage at localhost broke the connection off (tried 5 times)"),
        ("storage", PAGE, "a web page or the like came in place of what was asked of the hub"),
        ("storage", Fault(status=403), "(status 403)"),
        (
            "storage",
            Fault(status=429, retry_after="86400"),
            "answers with status 429 and asks to wait 86400 s, more than EDGEZOO_HUB_PATIENCE=300",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 8 else "",
)
def test_fault_that_stays_is_told_and_takes_nothing_away(hub, client, part, fault, said):
    old = hub.publish(REPO, {**FILES, WEIGHTS: CONTENT[::-1]})
    client.pull(REPO)
    hub.publish(REPO, FILES, branch="new")
    keep_half(client)
    hub.faults[part] = itertools.repeat(fault)
    patience = {"EDGEZOO_HUB_PATIENCE": "300"} if fault.retry_after else {}
    answer = client.pull(REPO, "new", **SHORT, **patience)
    assert said in answer.error
    assert answer.remedy
    assert partial(client).read_bytes() == CONTENT[: SIZE // 2], "what was here stays here"
    assert not (blobs(client) / SHA256).exists()
    assert contents(client.pull(REPO, old, is_offline=True))[WEIGHTS] == CONTENT[::-1]
    hub.faults.clear()
    hub.release.set()
    hub.requests.clear()
    assert contents(client.pull(REPO, "new")) == FILES
    assert ranges(hub) == [f"bytes={SIZE // 2}-"]


def test_answer_of_the_api_that_is_no_json(hub, client):
    hub.publish(REPO, FILES)
    hub.faults["api"] = itertools.repeat(Fault(page=b"{", kind="application/json"))
    answer = client.pull(REPO)
    assert answer.error.startswith("a web page or the like came in place of what was asked")
    assert "HF_ENDPOINT" in answer.remedy


def test_something_that_is_no_hub_answers(hub, client):
    hub.publish(REPO, FILES)
    hub.faults["resolve"] = itertools.repeat(Fault(moved_to="http://localhost:9/login?"))
    answer = client.pull(REPO)
    assert "says nothing of acme/tiny: config.json that a hub would say" in answer.error
    assert "HF_ENDPOINT" in answer.remedy


# Files that are not what the hub states.


def test_short_file_in_place_of_the_whole(hub, client):
    hub.publish(REPO, FILES)
    hub.shortened[WEIGHTS] = 1000
    answer = client.pull(REPO)
    assert answer.error == (
        f"{REPO}: {WEIGHTS} has {SIZE} bytes on the hub, a file of {SIZE - 1000} is sent in its"
        " place"
    )
    assert not (blobs(client) / SHA256).exists()
    hub.shortened.clear()
    assert contents(client.pull(REPO)) == FILES


def test_larger_file_in_place_of_the_stated_one(hub, client):
    hub.publish(REPO, FILES)
    hub.stated_sizes[WEIGHTS] = 1000
    answer = client.pull(REPO)
    assert f"has 1000 bytes on the hub, a file of {SIZE} is sent in its place" in answer.error
    assert not partial(client).exists()


def test_file_with_nothing_in_it(hub, client):
    files = {**FILES, "merges.txt": b""}
    hub.publish(REPO, files)
    assert contents(client.pull(REPO)) == files


def test_flipped_byte_in_a_small_file(hub, client):
    hub.publish(REPO, FILES)
    hub.flipped.add("config.json")
    answer = client.pull(REPO)
    assert answer.error.startswith(f"{REPO}: config.json has the git hash ")
    assert not list((client.home / "hub").rglob("config.json"))
    hub.flipped.clear()
    assert contents(client.pull(REPO)) == FILES


def test_damaged_part_is_removed_when_the_whole_is_wrong(hub, client):
    hub.publish(REPO, FILES)
    keep_half(client)
    partial(client).write_bytes(b"\0" * (SIZE // 2))
    answer = client.pull(REPO)
    assert answer.error.startswith(f"{REPO}: {WEIGHTS} has sha256 ")
    assert not partial(client).exists()
    assert contents(client.pull(REPO)) == FILES


def test_part_that_is_larger_than_the_file_is_of_no_use(hub, client):
    hub.publish(REPO, FILES)
    keep_half(client)
    partial(client).write_bytes(CONTENT + b"more")
    assert contents(client.pull(REPO)) == FILES
    assert ranges(hub) == [None]


def test_server_that_knows_no_ranges(hub, client):
    hub.publish(REPO, FILES)
    keep_half(client)
    hub.ignores_ranges = True
    assert contents(client.pull(REPO)) == FILES
    assert ranges(hub) == [f"bytes={SIZE // 2}-"]


# Processes that end, and several at once.


def test_next_process_continues_after_a_kill(hub, client, mortal_driver):
    hub.publish(REPO, FILES)
    hub.held.add(WEIGHTS)
    mortal_driver.start(client.job("pull", REPO))
    assert hub.is_waiting.wait(timeout=60)
    wait_for_half(client)
    mortal_driver.kill()
    hub.held.clear()
    assert contents(client.pull(REPO)) == FILES
    assert ranges(hub) == [None, f"bytes={SIZE // 2}-"]
    assert hub.sent_bytes < 1.1 * SIZE
    assert not partial(client).exists()


def test_next_process_continues_after_ctrl_c(hub, client, tmp_path):
    hub.publish(REPO, FILES)
    hub.held.add(WEIGHTS)
    # What `edgezoo convert` does, without the worker that reads the config before.
    script = (
        "from edgezoo_core.cli import main; from edgezoo_core.cli.convert import convert_command;"
        f" from edgezoo_core import hub; convert_command.callback = lambda **_: hub.pull({REPO!r});"
        " main()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", script, "convert", REPO],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **hub.environment(client.home)},
    )
    assert hub.is_waiting.wait(timeout=60)
    wait_for_half(client)
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60)[1].endswith("Aborted!\n")
    assert running.returncode == 130
    hub.held.clear()
    assert contents(client.pull(REPO)) == FILES
    assert ranges(hub) == [None, f"bytes={SIZE // 2}-"]


@pytest.mark.parametrize("second", ["pull", "hf_download"])
def test_two_processes_that_want_one_file_bring_it_once(hub, client, mortal_driver, second):
    hub.publish(REPO, FILES)
    hub.held.add(WEIGHTS)
    job = {**client.job("pull", REPO), "answer": str(client.home / "first.json")}
    mortal_driver.start(job)
    assert hub.is_waiting.wait(timeout=60)
    client.start(second, REPO)
    asked = len([r for r in hub.requests if r.method == "HEAD" and WEIGHTS in r.path])
    while len([r for r in hub.requests if r.method == "HEAD" and WEIGHTS in r.path]) == asked:
        time.sleep(0.01)
    if second == "pull":
        time.sleep(2)  # longer than it waits without saying so
    hub.release.set()
    mortal_driver.wait()
    answer = client.wait()
    assert contents(answer) == FILES
    assert json.loads((client.home / "first.json").read_text())["folder"] == str(answer.folder)
    assert ranges(hub) == [None]
    if second == "pull":
        assert waits(answer) == [f"waiting for another process, which downloads {WEIGHTS}"]


def test_process_that_holds_a_file_and_does_not_get_on(hub, client):
    hub.publish(REPO, FILES)
    lock(client).parent.mkdir(parents=True)
    with FileLock(lock(client)):
        answer = client.pull(REPO, EDGEZOO_HUB_PATIENCE="0", **SHORT)
    assert answer.error == (
        f"another process downloads {REPO}: {WEIGHTS} and has not got on for 5 s"
    )
    assert str(lock(client)) in answer.remedy
    assert contents(client.pull(REPO)) == FILES


def test_old_parts_are_swept_and_nothing_else(hub, client):
    hub.publish(REPO, FILES)
    folder = blobs(client)
    folder.mkdir(parents=True)
    names = {
        f"{'1' * 64}.edgezoo.incomplete": (8, False),
        f"{'2' * 64}.edgezoo.incomplete": (6, True),
        f"{'3' * 64}.0a1b2c3d.incomplete": (2, False),
        f"{'4' * 40}.0a1b2c3d.incomplete": (2, False),
        f"{'5' * 64}.0a1b2c3d.incomplete": (0.9, True),
        f"{'6' * 64}.incomplete": (99, True),  # of a client that continued them
        f"{'7' * 64}": (99, True),
        "notes.incomplete": (99, True),
        f"{'8' * 64}.0a1b2c3d.incomplete": (99, True),  # locked, below
    }
    for name, (days, _) in names.items():
        (folder / name).write_bytes(b"part")
        then = time.time() - days * 86400
        os.utime(folder / name, (then, then))
    other = client.home / "hub" / "models--acme--other" / "blobs" / f"{'9' * 64}.edgezoo.incomplete"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"part")
    os.utime(other, (0, 0))
    lock(client).parent.mkdir(parents=True)
    with FileLock(lock(client).with_name(f"{'8' * 64}.lock")):
        assert contents(client.pull(REPO)) == FILES
    assert other.exists()
    assert {n for n in names if (folder / n).exists()} == {n for n in names if names[n][1]}


# The disk and the cache.


def test_disk_that_is_too_small_is_told_before(hub, client):
    hub.publish(REPO, FILES)
    hub.stated_sizes[WEIGHTS] = 10**18
    answer = client.pull(REPO)
    assert f"{REPO}: {WEIGHTS} needs 1000000000.00 GB more, the disk of the" in answer.error
    assert "HF_HOME" in answer.remedy
    assert ranges(hub) == []


def test_disk_that_fills_up_keeps_what_it_took(hub, client):
    hub.publish(REPO, FILES)
    answer = client.pull(REPO, largest_file=SIZE // 2)
    assert answer.error.startswith("the cache of huggingface_hub cannot be written: ")
    assert "File too large" in answer.error
    assert partial(client).read_bytes() == CONTENT[: SIZE // 2]
    assert contents(client.pull(REPO)) == FILES
    assert ranges(hub)[1:] == [f"bytes={SIZE // 2}-"]


def test_cache_that_cannot_be_made(hub, client):
    hub.publish(REPO, FILES)
    (client.home / "hub").write_text("a file")
    answer = client.pull(REPO)
    assert answer.error.startswith("the cache of huggingface_hub cannot be written: ")
    assert "HF_HOME" in answer.remedy


def test_whole_snapshot_is_not_written_to(hub, client):
    hub.publish(REPO, FILES)
    client.pull(REPO)

    def state():
        found = (client.home / "hub").rglob("*")
        return {p: p.lstat().st_mtime_ns for p in found if "refs" not in p.parts}

    before = state()
    assert contents(client.pull(REPO)) == FILES
    assert state() == before


def test_cache_without_links_holds_a_file_once(hub, client):
    hub.publish(REPO, FILES)
    keep_half(client)
    answer = client.pull(REPO, HF_HUB_DISABLE_SYMLINKS="1")
    assert contents(answer) == FILES
    assert not any(p.is_symlink() for p in answer.folder.iterdir())
    assert list(blobs(client).iterdir()) == []
    assert ranges(hub) == [f"bytes={SIZE // 2}-"]


def test_blob_in_the_store_that_repos_share_is_sound(hub, client):
    # What the client makes of a file that it brought over Xet: the store names it by another hash.
    hub.publish(REPO, FILES)
    client.pull(REPO)
    blob = blobs(client) / SHA256
    stored = client.home / "hub" / "blobs" / "ab" / ("ab" * 32)
    stored.parent.mkdir(parents=True)
    blob.rename(stored)
    blob.symlink_to(os.path.relpath(stored, blob.parent))
    for is_offline in (False, True):
        assert contents(client.pull(REPO, is_offline=is_offline)) == FILES


def test_file_that_xet_stores_comes_in_ranges(hub, client):
    hub.publish(REPO, FILES)
    hub.tokens.add("hf_token")
    hub.has_xet = True
    keep_half(client)
    answer = client.pull(REPO, token="hf_token", HF_HUB_DISABLE_XET="0")
    assert contents(answer) == FILES
    assert ranges(hub) == [f"bytes={SIZE // 2}-"]
    assert not any("xet" in r.path for r in hub.requests)
    at_storage = [r for r in hub.requests if r.path.startswith("/storage/")]
    assert [r.token for r in at_storage] == [None]


@pytest.mark.parametrize(
    ("part", "fault", "said"),
    [
        ("api", PAGE, "a web page or the like came in place of what was asked of the hub"),
        ("resolve", Fault(status=500), "the hub answers with status 500 (tried 5 times)"),
    ],
)
def test_command_ends_with_a_sentence_and_a_remedy(hub, tmp_path, part, fault, said):
    hub.publish(REPO, FILES)
    hub.faults[part] = itertools.repeat(fault)
    home = {**hub.environment(tmp_path / "home"), "EDGEZOO_HUB_PATIENCE": "0"}
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [EDGEZOO, "convert", REPO],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path / "here",
        env={**os.environ, **home},
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert said in done.stderr.splitlines()[-2]
    assert done.stderr.splitlines()[-1].startswith("Fix: ")
    assert list((tmp_path / "here").iterdir()) == []


def test_patience_that_is_no_time(hub, client):
    hub.publish(REPO, FILES)
    answer = client.pull(REPO, EDGEZOO_HUB_PATIENCE="long")
    assert answer.error == "EDGEZOO_HUB_PATIENCE is 'long', which is no time"
