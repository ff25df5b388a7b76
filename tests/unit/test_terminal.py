"""Names and texts of strangers do not reach the terminal raw."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from edgezoo_core.cli import main
from edgezoo_core.cli.console import Stages, show_log
from edgezoo_core.cli.run import _answer
from fuzz import samples

EVIL = "\x1b]0;owned\x07\x1b[2J\u202e"


def refuse_raw(text):
    assert not {c for c in text if c in "\x1b\x07\u202e\x9b\r"}


def test_names_in_a_file_are_shown_and_not_obeyed(tmp_path):
    path = tmp_path / "a.tflite"
    evil = "e\x1b[2J\x07"
    assert len(evil) == len("logits")
    path.write_bytes(samples.tflite().replace(b"logits", evil.encode()))
    for command in (["inspect"], ["inspect", "--json"], ["check"], ["check", "--json"]):
        done = CliRunner().invoke(main, [*command, str(path)])
        assert done.exit_code in (0, 3), done.output
        refuse_raw(done.output)
    assert "e\\x1b[2J" in CliRunner().invoke(main, ["inspect", str(path)]).stdout


def test_errors_are_shown_and_not_obeyed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [EVIL]}))
    for arguments in (["check", f"{tmp_path}/{EVIL}"], ["info", EVIL], ["convert", str(tmp_path)]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 1, done.output
        refuse_raw(done.output)


def test_an_answer_keeps_newlines_and_is_not_obeyed(monkeypatch):
    class Chat:
        def say(self, text):
            yield from ("one\n\ttwo ", "\x1b", "[2J\x07", EVIL, "\u200d\U0001f600")

        def told(self):
            from edgezoo_core.chat import Answer

            return Answer("interpreter", [], [], 5, "")

    @main.command("answer-of-a-test")
    def command():
        _answer(Chat(), "?")

    monkeypatch.setattr(type(main), "get_command", lambda self, ctx, name: command)
    done = CliRunner().invoke(main, ["answer-of-a-test"])
    refuse_raw(done.stdout)
    assert done.stdout.startswith("one\n\ttwo \\x1b[2J\\x07")
    assert "\u200d\U0001f600" in done.stdout


def test_stages_and_the_log_are_shown_and_not_obeyed(capsys):
    import logging
    import sys

    with Stages(sys.stderr) as stages:
        stages(f"downloading {EVIL}")
    logger = logging.getLogger("edgezoo_core")
    handlers, level, propagates = logger.handlers, logger.level, logger.propagate
    try:
        show_log(verbose=False)
        logger.warning("from the hub: %s", EVIL)
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        logger.setLevel(level)
    shown = capsys.readouterr().err
    assert "downloading" in shown
    assert "from the hub" in shown
    refuse_raw(shown)


@pytest.mark.parametrize("name", ["list", "plugins"])
def test_lists_pass_the_same_way(name):
    refuse_raw(CliRunner().invoke(main, [name]).output)
