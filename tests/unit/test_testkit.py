"""The kit's report, its command, and what a card tells it; no library that computes is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from edgezoo_core import cards
from edgezoo_core.cards import Conformance
from edgezoo_core.cli.plugins_test import test_command as command
from edgezoo_core.errors import CardError, PluginError
from edgezoo_core.plugins import Plugin
from edgezoo_core.testkit import examination, report
from edgezoo_core.testkit.check import CheckFailedError, Outcome, check, demand

PLUGIN = Plugin("fake", "edgezoo-fake", "1.0", "edgezoo_fake")
PASSED = Outcome("card-valid", "The card is valid", None, "0.1.0", "passed", ("1 model",), 0.1)
FAILED = Outcome("int4", "It converts", "int4", "0.1.0", "failed", ("bad", "worse"), 1.2)
MISSED = Outcome("mask-input", "Both", "mask_input", "0.1.0", "not reached", ("int4",), 0.0)


# The card.


def read(tmp_path, models_toml, table):
    path = tmp_path / "models.toml"
    path.write_text(models_toml() + table)
    return cards.read_family(path).conformance


def test_card_without_the_table_claims_nothing(tmp_path, models_toml):
    assert read(tmp_path, models_toml, "") == Conformance()


def test_card_with_the_table(tmp_path, models_toml):
    table = """
[conformance]
capabilities = ["int4", "long_context"]
config = { head_dim = 32 }
reference = "edgezoo_fake.reference:open_model"
"""
    assert read(tmp_path, models_toml, table) == Conformance(
        ("int4", "long_context"), {"head_dim": 32}, "edgezoo_fake.reference:open_model"
    )


@pytest.mark.parametrize(
    ("line", "message", "remedy"),
    [
        ("capabilities = ['masks_input']", "unknown capability 'masks_input'", "`mask_input`"),
        ("capabilities = ['flight']", "unknown capability 'flight'", "known: prefill_lengths"),
        ("capabilities = [4]", "unknown capability 4", "known: prefill_lengths"),
        ("capabilities = 'int4'", "capabilities is 'int4', expected a list", "correct"),
        ("reference = 'package'", "expected package.module:function", "correct"),
        ("config = 3", "config is 3, expected a table", "correct"),
        ("capability = []", "unknown key capability", "did you mean `capabilities`?"),
    ],
)
def test_malformed_table(tmp_path, models_toml, line, message, remedy):
    with pytest.raises(CardError) as e:
        read(tmp_path, models_toml, f"[conformance]\n{line}\n")
    assert message in e.value.message
    assert "conformance: " in e.value.message
    assert remedy in e.value.remedy


# A check.


def test_check_takes_its_demand_from_the_docstring():
    @check("some-check", since="0.2.0", needs=["other"], capability="int4")
    def made(subject):
        """Something holds.

        And here is more.
        """

    assert (made.name, made.since, made.demand) == ("some-check", "0.2.0", "Something holds")
    assert (made.needs, made.capability) == (("other",), "int4")


def test_demand_says_what_was_found():
    demand(True, "nothing")
    with pytest.raises(CheckFailedError) as e:
        demand(False, "one", "two")
    assert e.value.found == ("one", "two")


# The report.


def test_report_passes_only_if_every_check_does():
    assert report.of(PLUGIN, [PASSED], 1.0).passes
    assert not report.of(PLUGIN, [PASSED, FAILED], 1.0).passes
    assert not report.of(PLUGIN, [PASSED, MISSED], 1.0).passes


def test_report_as_json():
    found = json.loads(json.dumps(report.of(PLUGIN, [PASSED, FAILED, MISSED], 31.26).to_json()))
    assert found["family"] == "fake"
    assert (found["passed"], found["failed"], found["not_reached"]) == (
        ["card-valid"],
        ["int4"],
        ["mask-input"],
    )
    assert found["seconds"] == 31.3
    assert found["checks"][1]["found"] == ["bad", "worse"]
    assert found["checks"][1]["since"] == "0.1.0"


def test_badge(monkeypatch):
    monkeypatch.setattr(report, "__version__", "0.7.3")
    image = "https://img.shields.io/badge/edgezoo_contract-0.7_"
    passes = report.of(PLUGIN, [PASSED], 1.0).badge
    assert passes == f"![edgezoo contract 0.7: passes]({image}passes-brightgreen)"
    assert f"({image}fails-red)" in report.of(PLUGIN, [FAILED], 1.0).badge


# Finding a plugin.


def test_plugin_that_is_not_installed(site):
    site.add("fake")
    with pytest.raises(PluginError, match="no plugin of family 'fike'") as e:
        examination.find("fike")
    assert e.value.remedy == "did you mean fake?"


def test_family_that_two_plugins_claim(site):
    site.add("fake")
    site.add("fake", distribution="edgezoo-other")
    with pytest.raises(PluginError, match=r"claimed by edgezoo-fake 1\.0, edgezoo-other 1\.0"):
        examination.find("fake")


def test_disabled_plugin(site, monkeypatch):
    site.add("fake")
    monkeypatch.setenv("EDGEZOO_PLUGINS", "gemma")
    with pytest.raises(PluginError, match="is disabled"):
        examination.find("fake")


def test_plugin_with_an_invalid_card_is_found(site):
    site.add("fake", card="schema = 1")
    assert examination.find("fake").state == "invalid-card"


# The command.


@pytest.fixture
def run(site, monkeypatch):
    site.add("fake")

    def run(outcomes, *arguments):
        made = report.of(examination.find("fake"), outcomes, 2.0)
        monkeypatch.setattr(examination, "examine", lambda plugin, progress: made)
        return CliRunner().invoke(command, ["fake", *arguments])

    return run


def test_command_prints_a_table_and_the_badge(run):
    result = run([PASSED])
    assert result.exit_code == 0, result.output
    assert "card-valid  must      passed   1 model" in result.stdout
    assert "1 passed, 0 failed, 0 not reached in 2 s" in result.stdout
    assert "For the README: ![edgezoo contract" in result.stdout


def test_command_says_what_was_found_and_exits_with_3(run):
    result = run([PASSED, FAILED, MISSED])
    assert result.exit_code == 3
    assert "\nint4\n  bad\n  worse\n" in result.stdout
    assert "needs int4" in result.stdout


def test_command_prints_and_writes_json(run, tmp_path):
    output = tmp_path / "report.json"
    result = run([PASSED], "--json", "--output", str(output))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(output.read_text())


def test_command_that_cannot_write_says_so(run, tmp_path):
    (tmp_path / "file").touch()
    result = run([PASSED], "--output", str(tmp_path / "file" / "report.json"))
    assert result.exit_code == 1
    assert "is no folder" in str(result.exception)


def test_neither_the_kit_nor_the_option_brings_pytest_or_torch():
    code = (
        "import sys, edgezoo_core.testkit.examination, edgezoo_core.testkit.options;"
        "print([n for n in ('pytest', 'torch', 'numpy', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
