"""install: what is asked of pip or uv, and what is refused. Nothing is downloaded."""

from __future__ import annotations

import shlex
import sys

import pytest
from click.testing import CliRunner

from edgezoo_core import installing
from edgezoo_core.cli import main
from edgezoo_core.errors import PluginError, TargetError
from edgezoo_core.installing import Requirement

PHI2 = "edgezoo-phi2 0.1.0: ok, phi-2\n"


def install(*arguments):
    return CliRunner().invoke(main, ["install", *arguments])


@pytest.fixture
def no_pip(monkeypatch):
    """An environment without pip."""
    monkeypatch.setattr(installing, "find_spec", {}.get)


@pytest.fixture
def uv(no_pip, tmp_path, monkeypatch):
    """A uv that only notes its arguments and ends with the exit code of $UV_CODE."""
    folder = tmp_path / "bin"
    folder.mkdir()
    noted = tmp_path / "noted"
    script = folder / "uv"
    notes = f'echo installing\necho "$@" >> {shlex.quote(str(noted))}'
    script.write_text(f"#!/bin/sh\n{notes}\nexit ${{UV_CODE:-0}}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return noted


# Names


@pytest.mark.parametrize(
    "name", ["gemma", "gemma-2b", "edgezoo-gemma", "Edgezoo_Gemma", "edgezoo.gemma"]
)
@pytest.mark.parametrize("may_be_unlisted", [False, True])
def test_family_model_and_distribution_lead_to_the_distribution(name, may_be_unlisted):
    found = installing.resolve(name, may_be_unlisted=may_be_unlisted)
    assert found == Requirement("edgezoo-gemma")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gema", "did you mean gemma? "),
        ("edgezoo-gema", "did you mean edgezoo-gemma? "),
        ("requests", "see `edgezoo list --available`. "),
        ("edgezoo-gemma==0.1.0", ""),
        ("", "see "),
    ],
)
def test_name_that_the_index_lacks_is_refused(name, hint):
    with pytest.raises(TargetError, match="the index has no family, model or package") as e:
        installing.resolve(name)
    assert e.value.remedy.startswith(hint)
    assert "--unlisted" in e.value.remedy
    assert "installing a package runs its code: be sure of the name" in e.value.remedy


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("edgezoo-mine", "edgezoo-mine"),
        ("Edgezoo_Mine", "edgezoo-mine"),
        ("edgezoo-mine==1.0", "edgezoo-mine==1.0"),
        ("edgezoo-gemma==0.1.0", "edgezoo-gemma==0.1.0"),
        ("mine>=2.0rc1.post1.dev2", "mine>=2.0rc1.post1.dev2"),
        ("mine==1.*", "mine==1.*"),
        # Not the file of that name which may be in this folder.
        ("mine.whl", "mine-whl"),
        ("mine.tar.gz", "mine-tar-gz"),
    ],
)
def test_unlisted_name_is_taken_as_a_distribution(name, asked):
    assert str(installing.resolve(name, may_be_unlisted=True)) == asked


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "./mine",
        "mine/",
        "/tmp/mine",
        "-r",
        "--index-url=https://example.org",
        "-mine",
        "mine-",
        "mine other",
        " mine",
        "mine\n",
        "mine\n--pre",
        "mine >= 1",
        "mine==1.tar.gz",
        "mine==1+local.zip",
        "mine===1",
        "mine==",
        "mine[extra]",
        "mine;python_version>'3'",
        "mine @ https://example.org/mine.whl",
        "https://example.org/mine.whl",
        "git+https://example.org/mine",
        "m\u00efne",
        "mine==\u0661",
    ],
)
def test_what_is_no_name_is_refused_even_if_unlisted(name):
    with pytest.raises(TargetError, match="is no name of a package") as e:
        installing.resolve(name, may_be_unlisted=True)
    assert e.value.message.isprintable()


# Commands


def test_pip_of_this_environment_comes_first(uv, monkeypatch):
    monkeypatch.setattr(installing, "find_spec", {"pip": "found"}.get)
    asked = [Requirement("edgezoo-phi2"), Requirement("mine", ">=1")]
    pip = [sys.executable, "-m", "pip", "install"]
    assert installing.command(asked) == [*pip, "edgezoo-phi2", "mine>=1"]
    assert installing.command(asked, is_upgrade=True) == [
        *(*pip, "--upgrade", "edgezoo-phi2", "mine>=1")
    ]


def test_uv_installs_into_this_environment(uv):
    wanted = ["uv", "pip", "install", "--python", sys.executable, "edgezoo-phi2"]
    assert installing.command([Requirement("edgezoo-phi2")]) == wanted


def test_neither_pip_nor_uv_is_told(no_pip, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PluginError, match="has no pip, and there is no uv") as e:
        installing.command([Requirement("edgezoo-phi2")])
    assert e.value.remedy == f"run: {sys.executable} -m ensurepip"


# The command


def test_command_is_shown_and_run_and_the_state_told(uv, capfd):
    done = install("--upgrade", "phi2", "phi-2", "edgezoo-phi2")
    command = f"pip install --python {sys.executable} --upgrade edgezoo-phi2"
    assert (done.exit_code, done.stdout, done.stderr) == (0, PHI2, f"$ uv {command}\n")
    assert uv.read_text() == f"{command}\n"
    # What the installer says goes to stderr.
    assert capfd.readouterr() == ("", "installing\n")


def test_dry_run_only_shows(uv):
    done = install("--dry-run", "--unlisted", "phi2", "mine==1.0")
    command = f"$ uv pip install --python {sys.executable} mine==1.0"
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.splitlines()[1:] == [command]
    assert not uv.exists()


def test_what_is_installed_stays_as_it_is(uv):
    done = install("phi2")
    assert (done.exit_code, done.stdout) == (0, PHI2)
    assert done.stderr == "edgezoo-phi2 is already installed; --upgrade looks for a newer version\n"
    assert not uv.exists()


def test_one_wrong_name_installs_nothing(uv):
    done = install("--upgrade", "phi2", "gema")
    assert done.exit_code == 1
    assert "Fix: did you mean gemma?" in done.stderr
    assert not uv.exists()


def test_failure_of_the_installer_is_told(uv, monkeypatch):
    monkeypatch.setenv("UV_CODE", "7")
    done = install("--upgrade", "phi2")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "Error: the installer ended with exit code 7\nFix: " in done.stderr


def test_package_that_is_no_plugin_is_told(uv):
    done = install("--unlisted", "click", "phi2")
    assert (done.exit_code, done.stdout) == (1, PHI2)
    assert "Error: click brings no plugin\n" in done.stderr


def test_plugin_that_does_not_work_is_told_with_its_reason(uv, site, monkeypatch):
    site.add(body="import nowhere_to_be_found")
    monkeypatch.setenv("PYTHONPATH", str(site.folder))
    done = install("--unlisted", "edgezoo-fake")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "Error: edgezoo-fake 1.0 is import-failed: import of edgezoo_fake" in done.stderr
    assert "Fix: see `edgezoo plugins --verbose`" in done.stderr


def test_plugins_that_cannot_be_listed_are_told(uv, site, monkeypatch):
    site.add(body="import os\nos._exit(5)")
    monkeypatch.setenv("PYTHONPATH", str(site.folder))
    done = install("--unlisted", "edgezoo-fake")
    assert "Error: the plugins cannot be listed (exit code 5)" in done.stderr


def test_no_name_is_wrong_usage():
    assert install().exit_code == 2
