"""The project's tasks. Needs Python 3.11 and a package registry, nothing else.

python3.11 dev.py demo    convert a real model, verify it, and let it answer a question
python3.11 dev.py test    run every check: lint, types, layers, docs, licences, tests
python3.11 dev.py release build wheels and sdists with their bills of materials, in dist
python3.11 dev.py docs    write the generated parts of the READMEs
python3.11 dev.py env     only make the environment in .venv
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
CONSTRAINTS = ROOT / "constraints.txt"
PLUGINS = ("edgezoo-gemma", "edgezoo-tinyllama", "edgezoo-phi2")
QUESTION = "What is the capital of France?"


def main() -> None:
    """Runs the task named on the command line."""
    tasks = {
        "demo": demo,
        "test": test,
        "docs": docs,
        "release": release,
        "env": make_environment,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=tasks)
    task = parser.parse_args().task
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        sys.exit("edgezoo needs Python 3.11 or 3.12: run this file with python3.11")
    try:
        tasks[task]()
    except subprocess.CalledProcessError as e:
        sys.exit(f"failed: {' '.join(map(str, e.cmd))}")


def demo() -> None:
    """Obtains SmolLM2-135M, converts it, verifies the file, and asks it a question."""
    make_environment()
    folder = ROOT / "demo"
    source, output = folder / "smollm2-135m", folder / "converted"
    say("obtaining SmolLM2-135M-Instruct")
    os.environ |= {"TORCH_LOGS": "-all", "TRANSFORMERS_VERBOSITY": "error"}
    run("python", "examples/smollm2.py", source)
    say("edgezoo convert ./demo/smollm2-135m --verify")
    run("edgezoo", "convert", source, "--output", output, "--force", "--verify")
    say(f"edgezoo run … --prompt '{QUESTION}'")
    file = output / "smollm2-135m_dynamic_int8_ekv1280.tflite"
    run("edgezoo", "run", file, "--prompt", QUESTION)


def test() -> None:
    """Runs every check."""
    make_environment()
    say("lint")
    run("ruff", "check")
    run("ruff", "format", "--check")
    say("types")
    run("mypy")
    say("layers")
    run("lint-imports")
    say("generated docs")
    run("python", "tools/readme.py", "--check")
    say("licences of dependencies")
    run("python", "tools/licences.py", "--check")
    say("tests")
    # Tests of one file share converted models, so a file keeps to one process.
    run("python", "-m", "pytest", "--numprocesses=2", "--dist=loadfile", "--durations=15")


def docs() -> None:
    """Writes the generated parts of the READMEs."""
    make_environment()
    run("python", "tools/readme.py")


def release() -> None:
    """Builds what is published, in dist."""
    make_environment()
    run("python", "tools/release.py")


def make_environment() -> None:
    """Makes .venv and installs the tested versions into it, unless that was done already."""
    stamp = ENVIRONMENT / "installed"
    inputs = [CONSTRAINTS, *sorted(ROOT.glob("**/pyproject.toml"))]
    wanted = hashlib.sha256(b"".join(p.read_bytes() for p in inputs)).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    say("making .venv (some 2 GB; a few minutes)")
    if not (BIN / "python").exists():
        venv.create(ENVIRONMENT, with_pip=True)
    projects = ["--editable", ".[convert,dev]"]
    for plugin in PLUGINS:
        projects += ["--editable", f"plugins/{plugin}"]
    run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *projects)
    stamp.write_text(wanted)


def run(program: str, *arguments: object) -> None:
    """Runs a program of the environment; its output goes through."""
    # Build environments take their pins from PIP_CONSTRAINT too, unlike from --constraint.
    variables = {
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "PIP_CONSTRAINT": str(CONSTRAINTS),
        "VIRTUAL_ENV": str(ENVIRONMENT),
    }
    command: Sequence[str] = [str(BIN / program), *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **variables})


def say(what: str) -> None:
    """Names the step that begins."""
    print(f"\n== {what}", flush=True)


if __name__ == "__main__":
    main()
