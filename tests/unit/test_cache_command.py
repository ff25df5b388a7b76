"""edgezoo cache: what it prints, and how it ends."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from edgezoo_core.cache import Cache
from edgezoo_core.cli import main


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEZOO_CACHE_LIMIT", "2GB")
    return Cache()


def add(cache, kind="trace", size_bytes=1000, **about):
    with cache.adding(kind, {"layers": 2}) as adding:
        (adding.folder / "graph.bin").write_bytes(b"x" * size_bytes)
        adding.about = about
    return adding.entry


def invoke(*arguments):
    return CliRunner().invoke(main, ["cache", *arguments])


def test_path(cache):
    assert invoke("path").stdout == f"{cache.root}\n"


def test_list_shows_entries_and_total(cache):
    entry = add(cache, size_bytes=1_200_000, title="gemma-2b, 2 signatures")
    add(cache, kind="skeleton")
    listed = invoke("list")
    assert listed.exit_code == 0
    header, skeleton, trace, total = listed.stdout.splitlines()
    assert header.split() == ["KIND", "KEY", "SIZE", "LAST", "USED", "TITLE"]
    assert trace.startswith(f"trace     {entry.key[:12]}  1.2 MB  20")
    assert trace.endswith("gemma-2b, 2 signatures")
    assert skeleton.split()[2:4] == ["1.0", "kB"]
    assert total == "2 entries, 1.2 MB of at most 2.0 GB"


def test_list_as_json(cache):
    entry = add(cache, title="gemma-2b")
    answer = json.loads(invoke("list", "--json").stdout)
    assert answer["path"] == str(cache.root)
    assert (answer["size_bytes"], answer["limit_bytes"]) == (1000, 2 * 10**9)
    (row,) = answer["entries"]
    assert row["key"] == entry.key
    assert row["created"].endswith("+00:00")
    assert (row["about"], row["parts"]) == ({"title": "gemma-2b"}, {"layers": 2})


def test_empty_cache(cache):
    assert invoke("list").stdout == "0 entries, 0.0 kB of at most 2.0 GB\n"
    assert invoke("verify").stdout == ""
    assert json.loads(invoke("verify", "--json").stdout) == []
    assert invoke("clear").stdout == "freed 0.0 kB\n"
    assert not cache.root.exists()


def test_verify(cache):
    entry = add(cache)
    add(cache, kind="skeleton")
    checked = invoke("verify")
    assert checked.exit_code == 0
    assert checked.stdout.splitlines()[1].split() == ["trace", entry.key[:12], "ok"]
    entry.path("graph.bin").write_bytes(b"y" * 1000)

    checked = invoke("verify")
    assert checked.exit_code == 1
    assert "graph.bin is not what was written" in checked.stdout
    assert "1 of 2 entries damaged" in checked.stderr
    assert "--remove" in checked.stderr
    assert entry.folder.exists()

    checked = invoke("verify", "--remove", "--json")
    assert checked.exit_code == 1
    faults = {row["kind"]: row["fault"] for row in json.loads(checked.stdout)}
    assert faults == {"trace": "graph.bin is not what was written", "skeleton": None}
    assert "damaged; removed" in checked.stderr
    assert not entry.folder.exists()
    assert invoke("verify").exit_code == 0


def test_clear(cache):
    add(cache)
    add(cache, kind="skeleton", size_bytes=5_000_000)
    assert invoke("clear", "--kind", "skeleton").stdout == "freed 5.0 MB\n"
    assert [e.kind for e in cache.list()] == ["trace"]
    freed = json.loads(invoke("clear", "--json").stdout)["freed_bytes"]
    assert 1000 < freed < 2000
    assert cache.list() == ()
    assert invoke("clear", "--kind", "other").exit_code == 2


def test_bad_limit_is_told(cache, monkeypatch):
    monkeypatch.setenv("EDGEZOO_CACHE_LIMIT", "much")
    listed = invoke("list")
    assert listed.exit_code == 1
    assert "Error: EDGEZOO_CACHE_LIMIT is 'much'" in listed.stderr
    assert "Fix: set it to a size" in listed.stderr
    assert invoke("path").exit_code == 0
