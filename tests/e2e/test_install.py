"""`edgezoo install` with the real pip, in an environment of its own and off the network."""

from __future__ import annotations

import os
import subprocess
import venv
import zipfile
from pathlib import Path

import click
import pluggy
import pytest

ROOT = Path(__file__).resolve().parents[2]

HOOKS = "from edgezoo_core import hookimpl\n\n@hookimpl\ndef author(model): ...\n"

CARD = """
schema = 1
hook_api = 1
family = "phi2"
architectures = ["PhiForCausalLM"]

[[models]]
id = "phi-2"
title = "Phi-2"
checkpoint = "microsoft/phi-2"
license = "mit"
parameters = 1000
context_length = 2048
recipes = ["none"]
default_recipe = "none"
"""


def build(folder: Path, version: str, hooks: str = HOOKS) -> None:
    """Writes a wheel of edgezoo-phi2."""
    info = f"edgezoo_phi2-{version}.dist-info"
    files = {
        "edgezoo_phi2/__init__.py": hooks,
        "edgezoo_phi2/models.toml": CARD,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: edgezoo-phi2\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[edgezoo]\nphi2 = edgezoo_phi2\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"edgezoo_phi2-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python that has pip and this core, and no plugin."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for needed in (click, pluggy):
        package = Path(needed.__file__).parent
        (packages / package.name).symlink_to(package)
    (packages / "edgezoo.pth").write_text(str(ROOT))
    return folder / "bin" / "python"


@pytest.fixture
def edgezoo(python, wheels, tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "EDGEZOO"))}
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}

    def edgezoo(*arguments, code=0):
        done = subprocess.run(
            [python, "-c", "from edgezoo_core.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**kept, **index},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return edgezoo


def test_installs_by_model_upgrades_and_tells_what_is_broken(edgezoo, python, wheels):
    failed = edgezoo("install", "phi2", code=1)
    assert "No matching distribution found for edgezoo-phi2" in failed.stderr
    assert "Error: the installer ended with exit code 1\nFix: " in failed.stderr

    build(wheels, "1.0")
    done = edgezoo("install", "phi-2")
    assert done.stdout == "edgezoo-phi2 1.0: ok, phi-2\n"
    assert done.stderr.startswith(f"$ {python} -m pip install edgezoo-phi2\n")
    assert "Successfully installed edgezoo-phi2-1.0" in done.stderr

    build(wheels, "2.0")
    again = edgezoo("install", "phi-2")
    assert again.stdout == done.stdout
    assert "edgezoo-phi2 is already installed" in again.stderr
    assert edgezoo("install", "--upgrade", "phi2").stdout == "edgezoo-phi2 2.0: ok, phi-2\n"

    build(wheels, "3.0", hooks="import nowhere_to_be_found\n")
    broken = edgezoo("install", "--upgrade", "phi2", code=1)
    assert broken.stdout == ""
    assert "Error: edgezoo-phi2 3.0 is import-failed: import of edgezoo_phi2" in broken.stderr
    assert "nowhere_to_be_found" in broken.stderr
