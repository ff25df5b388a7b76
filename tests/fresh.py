"""A fresh environment with edgezoo-core as pip installs it, and no plugin."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Environment:
    """A venv with its own pip. What this environment has besides edgezoo is linked into it.

    Args:
        folder: Where it is made.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.folder = folder
        self.bin = folder / "bin"
        (packages,) = folder.glob("lib/python*/site-packages")
        present = {p.name for p in packages.iterdir()}
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            # Editable installs of this project are .pth files and metadata.
            is_own = "edgezoo" in entry.name or entry.suffix == ".pth"
            if not is_own and entry.name not in present:
                (packages / entry.name).symlink_to(entry)
        scripts = Path(sysconfig.get_path("scripts"))
        for name in ("pytest", "hf"):
            self._link_script(scripts / name)
        self.run("pip", "install", "--quiet", "--editable", str(ROOT), cwd=folder)

    def variables(self) -> Mapping[str, str]:
        """Returns the environment variables of its processes: no network, its own programs."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "PIP_", "EDGEZOO", "VIRTUAL", "COV"))
        }
        return {
            **kept,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(self.folder),
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip's own twist: this turns isolation off
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def run(
        self, *command: str, cwd: Path, code: int = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment; it must end with this exit code."""
        done = subprocess.run(
            [self.bin / command[0], *command[1:]],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**self.variables(), **variables},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def _link_script(self, script: Path) -> None:
        text = script.read_text(encoding="utf-8").splitlines(keepends=True)
        copy = self.bin / script.name
        copy.write_text("".join([f"#!{self.bin / 'python'}\n", *text[1:]]), encoding="utf-8")
        copy.chmod(0o755)
