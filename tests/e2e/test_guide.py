"""The tutorial of plugins/README.md: its files are written, its commands run, their output held."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fresh import ROOT, Environment

GUIDE = ROOT / "plugins" / "README.md"
#: A file's name and its text, or commands with their output.
BLOCK = re.compile(
    r"^(?:`(?P<file>[\w./-]+)`:\n\n```\w+\n(?P<text>.*?)^```|```console\n(?P<session>.*?)^```)",
    re.DOTALL | re.MULTILINE,
)
#: The prompt is asked for what the shell prints; `…` in the guide stands for anything.
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A file of the tutorial, or a command."""

    file: str | None
    text: str
    output: str = ""


def steps() -> Iterator[Step]:
    guide = GUIDE.read_text(encoding="utf-8")
    tutorial = guide[
        guide.index("<!-- tutorial begins -->") : guide.index("<!-- tutorial ends -->")
    ]
    for block in BLOCK.finditer(tutorial):
        if block["file"]:
            yield Step(block["file"], block["text"])
        else:
            for command, output in COMMAND.findall(block["session"]):
                yield Step(None, command, output)


def expected(output: str) -> re.Pattern[str]:
    """Makes a pattern of what the guide shows."""
    parts = [re.escape(part) for part in output.rstrip("\n").split("…")]
    return re.compile(".*?".join(parts) + r"\s*", re.DOTALL)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("fresh") / "venv")


def test_tutorial(environment, hub, smollm2, tmp_path: Path):
    hub.publish("HuggingFaceTB/SmolLM2-135M-Instruct", smollm2)
    variables = {**environment.variables(), **hub.environment(tmp_path / "home")}
    work = tmp_path / "work"
    work.mkdir()
    found = list(steps())
    assert sum(step.file is not None for step in found) >= 4
    assert sum(step.file is None for step in found) >= 10
    for step in found:
        if step.file:
            path = work / step.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text, encoding="utf-8")
            continue
        done = subprocess.run(
            ["bash", "-c", step.text],
            capture_output=True,
            text=True,
            check=False,
            cwd=work,
            env=variables,
        )
        shown = "\n".join(line.rstrip() for line in done.stdout.splitlines())
        if not expected(step.output).fullmatch(shown):
            pytest.fail(
                f"$ {step.text}\n{done.stdout}\n--- exit code {done.returncode}, stderr:\n"
                f"{done.stderr[-3000:]}\n--- the guide shows:\n{step.output}"
            )
