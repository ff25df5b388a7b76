"""The command under faults that come from outside, and what must be true afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command import BIN, ENVIRONMENT

from edgezoo_core import artifact
from edgezoo_core.errors import ArtifactError

INJECTED = Path(__file__).parent / "faults" / "injected"
SHAPES = ("--prefill", "4", "--kv-cache", "32")
#: No command of these tests needs as long; one that does hangs.
PATIENCE_S = 300
#: Exit codes of a command that a fault ended.
FAILED, INTERRUPTED, KILLED = 1, 130, -signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """A command that came to its end."""

    code: int
    out: str
    err: str


@dataclass
class Bench:
    """A place for one case: a checkpoint, an output folder, a cache of its own.

    Attributes:
        folder: Where all of it is.
        checkpoint: What is converted.
        expected: File -> sha256 of a run without fault.
    """

    folder: Path
    checkpoint: Path
    expected: dict[str, str]
    earlier: dict[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def model(self) -> Path:
        return self.out / "m.tflite"

    def convert(self, *options: object) -> list[object]:
        return ["convert", self.checkpoint, *SHAPES, "--output", self.model, *options]

    def start(self, *command: object, **plan: Any) -> subprocess.Popen[str]:
        """Starts a command in a process group of its own; `plan` is a fault's."""
        environment = {**ENVIRONMENT, "EDGEZOO_CACHE": str(self.cache)}
        if plan:
            watch = [str(self.out), str(self.cache)]
            environment["EDGEZOO_FAULT"] = json.dumps({"watch": watch, **plan})
            paths = [str(INJECTED), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return subprocess.Popen(
            [str(BIN / "edgezoo"), *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=self.folder,
            start_new_session=True,
        )

    def run(self, *command: object, **plan: Any) -> Ended:
        """Runs a command to its end; none of its processes is left then."""
        return end(self.start(*command, **plan))

    def points(self, *command: object, **plan: Any) -> list[str]:
        """Returns the names of a command's points; each once, in order."""
        log = self.folder / "points"
        done = self.run(*command, log=str(log), **plan)
        assert done.code == 0, done.err
        names = list(dict.fromkeys(log.read_text().splitlines()))
        log.unlink()
        return names

    def stand(self, other: Bench) -> None:
        """Puts what another case made here, as what an earlier run left."""
        shutil.copytree(other.out, self.out, dirs_exist_ok=True)
        self.earlier = hashes(other.out)

    def fault(self, at: str, what: str, *command: object, code: int, **plan: Any) -> Ended:
        """Lets something happen at a point of a command, and demands what must be true then."""
        before = set(self.hidden())
        ended = self.run(*command, at=at, do=what, **plan)
        try:
            self.check(ended, code)
            if code != KILLED:
                assert set(self.hidden()) <= before, "temporary files"
        except AssertionError as e:
            e.add_note(f"{what} at {at!r}")
            raise
        return ended

    def check(self, ended: Ended, *codes: int) -> None:
        """Demands what must be true after every fault."""
        assert ended.code in codes, (ended.code, ended.err)
        assert "Traceback" not in ended.err, ended.err
        if ended.code == FAILED:
            error, fix = ended.err.rstrip("\n").split("\n")[-2:]
            assert error.startswith("Error: ") and fix.startswith("Fix: "), ended.err  # noqa: PT018
        if ended.code == INTERRUPTED:
            assert ended.err.endswith("Aborted!\n"), ended.err
        self.check_output()

    def hidden(self) -> list[str]:
        """Returns the temporary files and folders beside the output and in the cache."""
        found = [*self.out.glob(".*"), *self.cache.glob("partial/*")]
        return sorted(p.name for p in found)

    def check_output(self) -> None:
        """Demands that each file is wholly the earlier or wholly the new one, and not mistaken."""
        found = hashes(self.out)
        for name in self.earlier:
            assert name in found, f"the earlier {name} is lost"
        for name, digest in found.items():
            if name.startswith(".") or name.endswith(".json"):
                continue
            whole = {self.expected.get(name), self.earlier.get(name)}
            assert digest in whole, f"{name} is neither the earlier nor the new one"
            believed = believes(self.out / name)
            assert believed in (None, digest), f"{name} is believed to be another file"

    def rerun(self, *options: object) -> None:
        """Demands that the same command succeeds, with the same bytes, and leaves nothing else."""
        force = ["--force"] if self.model.exists() else []
        done = self.run(*self.convert(*(options or ("--no-bundle",)), *force))
        assert done.code == 0, done.err
        assert hashes(self.out).get("m.tflite") == self.expected["m.tflite"]
        assert believes(self.model) == self.expected["m.tflite"]
        assert self.hidden() == []


def end(process: subprocess.Popen[str]) -> Ended:
    """Waits for a command's end, and demands that it leaves no process."""
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert is_deserted(process.pid), "a worker outlives the command"
    return Ended(process.returncode, out, err)


def is_deserted(group: int) -> bool:
    """Says whether a process group becomes empty within seconds; ends it if not."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return False


def hashes(folder: Path) -> dict[str, str]:
    """Returns the sha256 of each file."""
    if not folder.is_dir():
        return {}
    files = sorted(p for p in folder.iterdir() if p.is_file())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def names(folder: Path) -> list[str]:
    """Returns what is in a folder."""
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def believes(path: Path) -> str | None:
    """Returns the sha256 that the manifest beside a file makes its reader believe."""
    try:
        manifest = artifact.read(path).manifest
    except ArtifactError:
        return None
    part = "bundle" if path.suffix == ".litertlm" else "artifact"
    return manifest[part]["sha256"] if manifest and part in manifest else None


def stages(ended: Ended) -> list[str]:
    """Returns the stages that were shown."""
    return re.findall(r"^ *(?:[\d.]+ s|failed)  (.*)$", ended.err, re.MULTILINE)
