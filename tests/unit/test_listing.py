"""list, info and plugins: what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
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


def test_plugins_shows_versions_hooks_and_models(site):
    site.add(version="1.2.3")
    (row,) = (p for p in json.loads(invoke("plugins", "--json").stdout) if p["family"] == "fake")
    assert row == {
        "family": "fake",
        "distribution": "edgezoo-fake",
        "version": "1.2.3",
        "hook_api": 1,
        "hooks": ["author"],
        "state": "ok",
        "reason": "",
        "architectures": ["FakeForCausalLM"],
        "models": ["fake-1b"],
    }
    header, *lines = invoke("plugins").stdout.splitlines()
    assert header.split()[:5] == ["FAMILY", "DISTRIBUTION", "API", "HOOKS", "STATE"]
    assert header.endswith("  MODELS OR REASON")
    (line,) = (line for line in lines if line.startswith("fake"))
    assert line.split() == ["fake", "edgezoo-fake", "1.2.3", "1", "author", "ok", "fake-1b"]


def test_plugins_shows_models_beside_a_conflict(site, models_toml):
    site.add("one", card=models_toml("one", models=("shared", "one-1b")))
    site.add("two", card=models_toml("two", models=("shared",)))
    reason = "model shared is claimed by edgezoo-one 1.0 and edgezoo-two 1.0"
    assert f"conflict  one-1b; {reason}" in invoke("plugins").stdout


def test_plugins_and_list_say_how_to_upgrade(site, models_toml):
    site.add(card=models_toml(hook_api=99))
    upgrade = "(pip install --upgrade edgezoo-core)"
    assert upgrade in invoke("plugins").stdout
    assert upgrade in invoke("list").stderr


def test_reason_is_one_plain_line(site):
    site.add(body="raise ValueError('two\\nlines\\x1b[31m')")
    (line,) = (line for line in invoke("plugins").stdout.splitlines() if "fake" in line)
    assert line.endswith(r"import of edgezoo_fake failed: ValueError: two lines\x1b[31m")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_plugins_print_is_no_data(site, options):
    site.add(body="print('hello')\nraise ValueError")
    shown = invoke("plugins", *options)
    assert "hello" not in shown.stdout
    assert "hello" in shown.stderr


def run_apart(site, *arguments):
    """Runs the command in a process of its own, whose log is its own."""
    done = subprocess.run(
        [sys.executable, "-c", "from edgezoo_core.cli import main; main()", *arguments],
        env={**os.environ, "PYTHONPATH": str(site.folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, done.stderr


def test_traceback_is_shown_when_asked_for(site):
    site.add(body="def fail():\n    return {}['missing key']\nfail()")
    out, err = run_apart(site, "plugins")
    assert "import of edgezoo_fake failed: KeyError: 'missing key'" in out
    assert err == ""
    assert "Traceback" not in out
    again, err = run_apart(site, "plugins", "--verbose")
    assert again == out
    assert "fake (edgezoo-fake 1.0) is import-failed:\nTraceback" in err
    assert "edgezoo_fake/__init__.py" in err
    assert err.endswith("\nKeyError: 'missing key'\n")


def test_old_name_of_an_argument_is_one_line_without_verbose(site):
    # The plugin makes the core a later one.
    site.add(
        body="from edgezoo_core import hookimpl, hookspecs\n"
        "hookspecs.RENAMED = {'author': {'configuration': 'config'}}\n"
        "@hookimpl\ndef author(configuration): ...\n"
    )
    out, err = run_apart(site, "plugins", "--json")
    assert {p["family"]: p["state"] for p in json.loads(out)}["fake"] == "ok"
    (line,) = err.splitlines()
    assert line.startswith("plugin fake of edgezoo-fake 1.0: author takes configuration, which")


def test_broken_plugin_does_not_spoil_the_list(site):
    site.add("broken", card=None)
    listed = invoke("list")
    assert listed.exit_code == 0
    assert "gemma-2b" in listed.stdout
    assert "broken (edgezoo-broken" in listed.stderr
