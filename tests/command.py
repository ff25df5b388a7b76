"""The command `edgezoo` as a user runs it, offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def edgezoo(
    *arguments: object, cwd: Path | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs it; it must end with this exit code."""
    done = subprocess.run(
        [BIN / "edgezoo", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=ENVIRONMENT,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done
