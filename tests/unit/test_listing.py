"""list, info and plugins: what they print."""

from __future__ import annotations

import json

from click.testing import CliRunner

from edgezoo_core.cli import main


def invoke(*arguments):
    return CliRunner().invoke(main, list(arguments))


def test_list_shows_every_model_of_the_index():
    listed = invoke("list", "--json")
    assert listed.exit_code == 0
    rows = {row["id"]: row for row in json.loads(listed.stdout)}
    assert rows["phi-2"]["checkpoint"] == "microsoft/phi-2"
    assert rows["gemma-7b-it"]["gated"] is True
    text = invoke("list").stdout
    assert [line.split()[0] for line in text.splitlines()[1:]] == sorted(rows)


def test_available_says_how_to_install(monkeypatch):
    monkeypatch.setenv("EDGEZOO_PLUGINS", "gemma")
    text = invoke("list", "--available").stdout
    assert "pip install edgezoo-phi2" in text
    assert "pip install edgezoo-gemma" not in text
    rows = {r["id"]: r for r in json.loads(invoke("list", "--available", "--json").stdout)}
    assert rows["phi-2"]["installed"] is False
    assert rows["gemma-2b"]["installed"] is True


def test_list_without_plugins_points_to_the_index(monkeypatch):
    monkeypatch.setenv("EDGEZOO_PLUGINS", "")
    listed = invoke("list")
    assert listed.exit_code == 0
    assert listed.stdout == ""
    assert "edgezoo list --available" in listed.stderr


def test_info_shows_the_card():
    card = json.loads(invoke("info", "gemma-2b", "--json").stdout)
    assert card["family"] == "gemma"
    assert card["signatures"]["kv_cache_length"] == 1280
    text = invoke("info", "gemma-2b").stdout
    assert "google/gemma-2b@main" in text
    assert "dynamic_int8*" in text


def test_plugins_shows_states(monkeypatch):
    monkeypatch.setenv("EDGEZOO_PLUGINS", "gemma,tinyllama")
    states = {p["family"]: p["state"] for p in json.loads(invoke("plugins", "--json").stdout)}
    assert states["gemma"] == states["tinyllama"] == "ok"
    assert states["phi2"] == "disabled"
    assert "not named in EDGEZOO_PLUGINS" in invoke("plugins").stdout


def test_broken_plugin_does_not_spoil_the_list(site):
    site.add("broken", card=None)
    listed = invoke("list")
    assert listed.exit_code == 0
    assert "gemma-2b" in listed.stdout
    assert "broken (edgezoo-broken" in listed.stderr
