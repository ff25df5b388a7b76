"""The cache: a hit is right to the last byte, a fault is a miss, and processes may die."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edgezoo_core.cache
from edgezoo_core import locks
from edgezoo_core.cache import Cache, digest, settings
from edgezoo_core.errors import CacheError

PARTS = {"config": {"layers": 2, "eps": 1e-6}, "signatures": [[8, 128], None, True]}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("EDGEZOO_CACHE", "EDGEZOO_CACHE_LIMIT", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 10**6)


def add(cache, parts=PARTS, kind="trace", content=b"graph", **about):
    with cache.adding(kind, parts) as adding:
        (adding.folder / "graph.bin").write_bytes(content)
        (adding.folder / "empty").touch()
        adding.about = about
    return adding.entry


def tree(cache):
    """All files and folders but the cache's own fixed ones."""
    names = (p.relative_to(cache.root).as_posix() for p in cache.root.rglob("*"))
    return sorted(n for n in names if n not in ("trace", "skeleton", "partial", "locks"))


def partials(cache):
    return [p.name for p in (cache.root / "partial").iterdir()]


def record_of(entry):
    return json.loads((entry.folder / "entry.json").read_text())


def start(code, cache, *arguments):
    """Starts a process that has `cache`, and says what it prints; wait for its first line."""
    head = (
        "import sys, time, pathlib\nfrom edgezoo_core.cache import Cache\n"
        f"cache = Cache(pathlib.Path(sys.argv[1]), 10**6)\nPARTS = {PARTS!r}\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code, str(cache.root), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def end(process, said=""):
    out, _ = process.communicate(said, timeout=20)
    return out


# Hits and misses


def test_entry_comes_back(cache):
    assert cache.get("trace", PARTS) is None
    before = time.time()
    entry = add(cache, title="gemma-2b")
    assert before <= entry.created <= time.time()
    got = cache.get("trace", PARTS)
    assert got.path("graph.bin").read_bytes() == b"graph"
    assert (got.kind, got.key, got.size_bytes) == ("trace", digest(PARTS), 5)
    assert (got.parts, got.about) == (PARTS, {"title": "gemma-2b"})
    assert sorted(got.files) == ["empty", "graph.bin"]
    assert (got.folder, got.files, got.created) == (entry.folder, entry.files, entry.created)
    key = digest(PARTS)
    inside = [f"trace/{key}/{n}" for n in ("empty", "entry.json", "graph.bin")]
    assert tree(cache) == [f"trace/{key}", *inside]


def test_other_parts_and_other_kinds_miss(cache):
    add(cache)
    assert cache.get("skeleton", PARTS) is None
    assert cache.get("trace", {**PARTS, "more": None}) is None
    assert len(cache.list()) == 1


def test_types_of_values_count():
    keys = {digest({"a": value}) for value in (1, 1.0, True, "1", None, [1], {"1": 1})}
    assert len(keys) == 7
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {1: 2},
        [{None: 1}],
        {1, 2},
        b"bytes",
        Path("/"),
        pytest.param(object(), id="object"),
    ],
    ids=str,
)
def test_what_is_no_json_has_no_key(value):
    with pytest.raises(CacheError, match="JSON values only") as e:
        digest({"a": value})
    assert "--no-cache" in e.value.remedy


def test_parts_that_meet_in_a_key_do_not_meet_in_a_hit(cache, monkeypatch, caplog):
    for module in (edgezoo_core.cache, edgezoo_core.cache.entry):
        monkeypatch.setattr(module, "digest", lambda parts: "0" * 64)
    add(cache, {"a": 1})
    assert cache.get("trace", {"a": 1})
    assert cache.get("trace", {"a": True}) is None
    assert "made of other parts" in caplog.text
    add(cache, {"a": 2})
    assert add(cache, {"a": 3}).parts == {"a": 3}, "the other one had to give way"


def test_forged_key_misses(cache, caplog):
    entry = add(cache)
    other = {**PARTS, "config": None}
    forged = entry.folder.rename(entry.folder.with_name(digest(other)))
    assert cache.get("trace", other) is None
    assert "describes another entry" in caplog.text
    assert not forged.exists()


def test_unknown_names_are_refused(cache):
    entry = add(cache)
    for misuse in (
        lambda: cache.get("../trace", PARTS),
        lambda: entry.path("../../secret"),
        lambda: entry.path("entry.json"),
        lambda: cache.remove(cache.root.parent),
        lambda: cache.remove(cache.root / "trace"),
        lambda: cache.remove(cache.root / "trace" / ".." / ("0" * 64)),
        lambda: cache.lock("../x", digest(PARTS)).__enter__(),
        lambda: cache.lock("trace", "../x").__enter__(),
    ):
        with pytest.raises(CacheError):
            misuse()
    assert cache.get("trace", PARTS)


def test_find_takes_the_newest_that_is_accepted(cache, monkeypatch):
    for age, revision in enumerate(["new", "old", "oldest"]):
        monkeypatch.setattr(time, "time", lambda age=age: 1e9 - age)
        add(cache, {"layers": 2, "revision": revision})
    asked = []

    def accepts(parts):
        asked.append(parts["revision"])
        return parts["revision"].startswith("old")

    assert cache.find("trace", accepts).parts["revision"] == "old"
    assert asked == ["new", "old"]
    assert cache.find("trace", lambda parts: False) is None
    assert cache.find("skeleton", lambda parts: True) is None


def test_find_passes_over_damage(cache, caplog):
    good = add(cache, {"n": 1})
    bad = add(cache, {"n": 2})
    (bad.folder / "graph.bin").write_bytes(b"grapf")
    assert cache.find("trace", lambda parts: True).key == good.key
    assert not bad.folder.exists()
    assert "not what was written" in caplog.text


# Damage


def spoil_record(**changes):
    def spoil(entry):
        record = {**record_of(entry), **changes}
        (entry.folder / "entry.json").write_text(json.dumps(record))

    return spoil


def link(entry, name):
    kept = entry.folder.parent.parent / f"kept-{name}"
    (entry.folder / name).rename(kept)
    (entry.folder / name).symlink_to(kept)


def link_folder(entry):
    entry.folder.symlink_to(entry.folder.rename(entry.folder.parent.parent / "kept"))


def make_file_of(entry):
    entry.folder.rename(entry.folder.parent.parent / "kept")
    entry.folder.write_text("no folder")


def make_pipe(entry):
    (entry.folder / "empty").unlink()
    os.mkfifo(entry.folder / "empty")


GOOD_FILE = {"size_bytes": 0, "sha256": "0" * 64}
DAMAGES = {
    "file missing": (lambda e: (e.folder / "empty").unlink(), "foreign: empty"),
    "file truncated": (
        lambda e: (e.folder / "graph.bin").write_bytes(b"grap"),
        "graph.bin has 4 bytes, expected 5",
    ),
    "byte flipped": (lambda e: (e.folder / "graph.bin").write_bytes(b"grapi"), "not what was"),
    "file foreign": (lambda e: (e.folder / "x").touch(), "foreign: x"),
    "folder foreign": (lambda e: (e.folder / "x").mkdir(), "foreign: x"),
    "file a link": (lambda e: link(e, "graph.bin"), "graph.bin is no plain file"),
    "file a pipe": (make_pipe, "empty is no plain file"),
    "record a link": (lambda e: link(e, "entry.json"), "a link"),
    "record missing": (lambda e: (e.folder / "entry.json").unlink(), "FileNotFoundError"),
    "record empty": (lambda e: (e.folder / "entry.json").write_text(""), "JSONDecodeError"),
    "record binary": (lambda e: (e.folder / "entry.json").write_bytes(b"\xff\x00"), "valid"),
    "record a list": (lambda e: (e.folder / "entry.json").write_text("[]"), "TypeError"),
    "record deep": (
        lambda e: (e.folder / "entry.json").write_text("[" * 10**5),
        "nested too deeply",
    ),
    "record partial": (lambda e: (e.folder / "entry.json").write_text('{"schema": 1}'), "KeyErr"),
    "schema": (spoil_record(schema=2), "schema 2, expected 1"),
    "kind": (spoil_record(kind="skeleton"), "describes another entry"),
    "key": (spoil_record(key="0" * 64), "describes another entry"),
    "parts": (spoil_record(parts={**PARTS, "config": None}), "its parts were changed"),
    "parts no mapping": (spoil_record(parts=list(PARTS.items())), "JSON values only"),
    "about": (spoil_record(about=3), "TypeError"),
    "created": (spoil_record(created=float("nan")), "NaN, which is not JSON"),
    "files no mapping": (spoil_record(files=["graph.bin"]), "AttributeError"),
    "file no record": (spoil_record(files={"graph.bin": None}), "TypeError"),
    "size huge": (spoil_record(files={"x": {**GOOD_FILE, "size_bytes": 1e999}}), "Infinity"),
    "name traversing": (spoil_record(files={"../../x": GOOD_FILE}), "a file's name is none"),
    "folder a link": (link_folder, "a link"),
    "folder a file": (make_file_of, "NotADirectoryError"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_removed_and_missed(cache, caplog, damage):
    spoil, message = DAMAGES[damage]
    entry = add(cache)
    spoil(entry)
    ((found, fault),) = cache.verify()
    assert getattr(found, "folder", found) == entry.folder
    assert message in fault
    with caplog.at_level(logging.WARNING):
        assert cache.get("trace", PARTS) is None
    assert message in caplog.text
    assert not os.path.lexists(entry.folder)
    assert not any(name.startswith(("trace/", "partial/")) for name in tree(cache))
    assert add(cache).folder.is_dir()
    assert cache.get("trace", PARTS), "it can be made anew"


def test_what_a_link_led_to_stays(cache):
    entry = add(cache)
    link_folder(entry)
    assert cache.get("trace", PARTS) is None
    assert (cache.root / "kept" / "graph.bin").read_bytes() == b"graph"


def test_list_and_verify_remove_nothing(cache):
    good, bad, worse = (add(cache, {"n": n}) for n in range(3))
    (bad.folder / "graph.bin").write_bytes(b"grapi")
    (worse.folder / "entry.json").write_text("{}")
    assert {e.key for e in cache.list()} == {good.key, bad.key}, "files are not read"
    faults = {getattr(at, "folder", at): fault for at, fault in cache.verify()}
    assert faults.keys() == {good.folder, bad.folder, worse.folder}
    assert faults[good.folder] is None
    assert cache.remove(bad.folder) > 0
    assert cache.remove(bad.folder) == 0
    assert worse.folder.exists()


def test_entries_that_vanish_while_looked_at(cache, monkeypatch):
    entries = [add(cache, {"n": n}) for n in range(2)]
    examine = edgezoo_core.cache.examine

    def late(folder, *, is_deep):
        if folder == entries[0].folder:
            Cache(cache.root).remove(folder)
        return examine(folder, is_deep=is_deep)

    monkeypatch.setattr(edgezoo_core.cache, "examine", late)
    assert [e.key for e in cache.list()] == [entries[1].key]
    assert [fault for _, fault in cache.verify()] == [None]


# Adding


@pytest.mark.parametrize("fault", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EBADF, "")])
def test_fault_while_adding_leaves_nothing(cache, fault):
    def fail():
        with cache.adding("trace", PARTS) as adding:
            (adding.folder / "half").touch()
            raise fault

    with pytest.raises(type(fault)) as e:
        fail()
    assert e.value is fault
    assert tree(cache) == []


def test_full_disk_is_told(cache):
    with pytest.raises(CacheError, match="No space left") as e, cache.adding("trace", PARTS):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "EDGEZOO_CACHE" in e.value.remedy
    assert tree(cache) == []


@pytest.mark.parametrize("name", ["entry.json", "-x", ".hidden", "a b"])
def test_only_plain_names_are_taken(cache, name):
    with pytest.raises(CacheError, match="plain files"), cache.adding("trace", PARTS) as adding:
        (adding.folder / name).touch()
    assert tree(cache) == []


def test_folders_and_strange_words_are_not_taken(cache):
    with pytest.raises(CacheError, match="plain files"), cache.adding("trace", PARTS) as adding:
        (adding.folder / "sub").mkdir()
    with pytest.raises(CacheError, match="JSON"), cache.adding("trace", PARTS) as adding:
        adding.about = {"title": object()}
    assert tree(cache) == []


def test_the_first_to_publish_wins(cache):
    with cache.adding("trace", PARTS) as ours:
        (ours.folder / "graph.bin").write_bytes(b"ours")
        theirs = add(cache, content=b"theirs")
    assert ours.entry.path("graph.bin").read_bytes() == b"theirs"
    assert ours.entry.created == theirs.created
    assert len(cache.list()) == 1
    assert not any(name.startswith("partial/") for name in tree(cache))


def test_damage_in_the_way_is_replaced(cache):
    (add(cache).folder / "graph.bin").write_bytes(b"?")
    assert add(cache).path("graph.bin").read_bytes() == b"graph"
    assert cache.get("trace", PARTS)


def test_many_processes_add_the_same(cache):
    code = (
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for i in range(5):\n"
        "    with cache.adding('trace', {**PARTS, 'i': i}) as adding:\n"
        "        (adding.folder / 'graph.bin').write_text(sys.argv[2] * 1000)\n"
        "    print(adding.entry.path('graph.bin').read_text()[0])\n"
    )
    processes = [start(code, cache, name) for name in "abc"]
    assert [p.stdout.readline() for p in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [end(p) for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0]
    assert said[0] == said[1] == said[2], "all got the same entries"
    assert [fault for _, fault in cache.verify()] == [None] * 5
    assert partials(cache) == []


def test_killed_process_leaves_no_entry_and_is_swept(cache):
    code = (
        "with cache.adding('trace', PARTS) as adding:\n"
        "    (adding.folder / 'graph.bin').write_text('half')\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    killed, living = start(code, cache), start(code, cache)
    for process in (killed, living):
        assert process.stdout.readline() == "ready\n"
    killed.send_signal(signal.SIGKILL)
    end(killed)
    assert cache.get("trace", PARTS) is None
    assert cache.list() == cache.verify() == ()
    assert len(partials(cache)) == 2
    add(cache, {"other": 1})
    (left,) = partials(cache)
    assert left.startswith(f"{living.pid}-")
    end(living, "\n")
    assert living.returncode == 0
    assert cache.get("trace", PARTS).path("graph.bin").read_text() == "half"


def test_without_locks_only_what_is_old_is_swept(cache, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    left = [cache.root / "partial" / f"1-{n:016x}" for n in range(2)]
    for folder in left:
        folder.mkdir(parents=True)
    yesterday = time.time() - locks.DAY_S - 1
    os.utime(left[1], (yesterday, yesterday))
    assert add(cache)
    assert [folder.exists() for folder in left] == [True, False]
    with pytest.raises(CacheError, match="No locks available"), cache.lock("trace", "0" * 64):
        pass


# Size


def test_least_recently_used_goes_first(cache):
    entries = [add(cache, {"n": n}, content=b"x" * 1000) for n in range(4)]
    for age, entry in enumerate(entries):  # the later, the older
        os.utime(entry.folder / "entry.json", (1e9 - age, 1e9 - age))
    assert cache.get("trace", {"n": 3}), "which uses it"
    small = Cache(cache.root, 5000)
    newest = add(small, {"n": 4}, kind="skeleton", content=b"x" * 1000)
    kept = {e.key for e in cache.list()}
    assert kept == {newest.key, *(digest({"n": n}) for n in (0, 3))}
    assert [e.parts["n"] for e in cache.list()] == [4, 3, 0]


def test_what_was_just_added_stays(cache):
    add(cache)
    small = Cache(cache.root, 0)
    big = add(small, {"n": 1}, content=b"x" * 10**5)
    assert [e.key for e in cache.list()] == [big.key]
    assert small.get("trace", {"n": 1})


def test_clear(cache):
    add(cache, content=b"x" * 1000)
    add(cache, kind="skeleton", content=b"x" * 3000)
    foreign = [cache.root / "trace" / "readme", cache.root / "mine"]
    for path in foreign:
        path.write_text("not the cache's")
    (cache.root / "partial" / f"1-{0:016x}").mkdir()
    assert 3000 < cache.clear("skeleton") < 4000
    assert [e.kind for e in cache.list()] == ["trace"]
    assert 1000 < cache.clear() < 2000
    assert tree(cache) == ["mine", "trace/readme"]
    assert cache.clear() == 0


# Locks


def test_lock_lets_one_process_pass_at_a_time(cache):
    code = (
        "with cache.lock('trace', '0' * 64, lambda whom: print('waiting for', whom, flush=True)):\n"
        "    print('in', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    first = start(code, cache)
    assert first.stdout.readline() == "in\n"
    second = start(code, cache)
    assert second.stdout.readline() == f"waiting for process {first.pid}\n"
    with cache.lock("skeleton", "0" * 64), cache.lock("trace", "1" * 64):
        pass  # others are free
    end(first, "\n")
    assert second.stdout.readline() == "in\n"
    second.send_signal(signal.SIGKILL)
    end(second)
    told = []
    with cache.lock("trace", "0" * 64, told.append):
        assert told == []


def test_lock_is_freed_by_a_fault(cache):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), cache.lock("trace", "0" * 64):
            raise ZeroDivisionError


# Where it stands


def test_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()  # permissions would not stop root
    cache = Cache(tmp_path / "file" / "cache")
    assert cache.get("trace", PARTS) is None
    assert cache.find("trace", lambda parts: True) is None
    assert cache.list() == cache.verify() == ()
    assert cache.clear() == 0
    for block in (cache.adding("trace", PARTS), cache.lock("trace", "0" * 64)):
        with pytest.raises(CacheError, match="cannot be written: Not a directory") as e, block:
            pass
        assert "EDGEZOO_CACHE" in e.value.remedy
        assert "--no-cache" in e.value.remedy


def test_cache_that_can_only_be_read(cache, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    bad = add(cache, {"n": 1})
    (bad.folder / "empty").unlink()
    add(cache)
    for module, name in ((os, "utime"), (Path, "rename"), (Path, "mkdir")):
        monkeypatch.setattr(module, name, refuse)
    assert cache.get("trace", PARTS)
    assert cache.get("trace", {"n": 1}) is None
    assert "damaged" in caplog.text
    with pytest.raises(CacheError, match="Read-only"):
        cache.clear()


def test_root_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert settings.default_root() == tmp_path / ".cache" / "edgezoo"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert settings.default_root() == tmp_path / "Library" / "Caches" / "edgezoo"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert settings.default_root() == tmp_path / "Library" / "Caches" / "edgezoo"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert settings.default_root() == Path("/xdg/edgezoo")
    monkeypatch.setenv("EDGEZOO_CACHE", "~/mine")
    assert Cache().root == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEZOO_CACHE", "here")
    assert Cache().root == tmp_path / "here"


def test_no_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(CacheError, match="no folder for the cache"):
        Cache()


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("", 4 * 10**9),
        ("0", 0),
        ("123", 123),
        (" 2GB ", 2 * 10**9),
        ("1.5 mb", 1_500_000),
        ("10kB", 10_000),
        ("7B", 7),
        ("1GiB", 2**30),
        ("2tb", 2 * 10**12),
    ],
)
def test_limit_by_the_environment(monkeypatch, text, size_bytes):
    monkeypatch.setenv("EDGEZOO_CACHE_LIMIT", text)
    assert Cache(Path("/x")).limit_bytes == size_bytes


@pytest.mark.parametrize("text", ["much", "-1GB", "1e9", "GB", "1 G B", "inf", "1..5MB", "2XB"])
def test_limit_that_is_none(monkeypatch, text):
    monkeypatch.setenv("EDGEZOO_CACHE_LIMIT", text)
    with pytest.raises(CacheError, match="EDGEZOO_CACHE_LIMIT is") as e:
        Cache(Path("/x"))
    assert "2GB" in e.value.remedy


def test_import_is_light():
    code = (
        "import sys; before = set(sys.modules); import edgezoo_core.cache\n"
        "print(*{n.partition('.')[0] for n in set(sys.modules) - before})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) - sys.stdlib_module_names == {"edgezoo_core"}
