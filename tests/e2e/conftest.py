"""Fixtures of the end-to-end tests: the real hub client, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from hub_server import HubServer

ROOT = Path(__file__).resolve().parents[2]

#: Answers one job per line of stdin. huggingface_hub reads its environment when it is imported, so
#: every job has a fresh child; torch, which edgezoo_core.hub needs too, is imported once for all.
DRIVER = """
import json, logging, os, resource, sys, traceback
from pathlib import Path

import edgezoo_core.checkpoint

def hf_download(repo, revision, progress):
    # What `hf download --include` does.
    from huggingface_hub import snapshot_download
    from edgezoo_core.hub_cache import Snapshot
    patterns = ["*.json", "*.safetensors"]
    folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    return Snapshot(folder, folder.name)

class Stages(list):
    # Progress that remembers what began.
    __call__ = list.append

    def advance(self, done_bytes, total_bytes):
        pass

def run(job):
    streams = os.open(job["streams"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(streams, 1)
    os.dup2(streams, 2)
    os.environ.update(job["environment"])
    if job["largest_file"]:  # as on a disk that has no more room
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"],) * 2)
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG)
    from edgezoo_core import hub
    from edgezoo_core.errors import CheckpointError
    stages = Stages()
    try:
        call = hf_download if job["call"] == "hf_download" else getattr(hub, job["call"])
        found = call(job["repo"], job["revision"], progress=stages)
    except CheckpointError as e:
        answer = {"error": e.message, "remedy": e.remedy}
        traceback.print_exc()
    else:
        answer = {"folder": str(found.folder), "commit": found.commit}
    import huggingface_hub
    assert huggingface_hub.constants.ENDPOINT == job["environment"]["HF_ENDPOINT"]
    return answer | {"stages": stages}

assert "huggingface_hub" not in sys.modules
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        try:
            answer = run(job)
        except BaseException:
            answer = {"crash": traceback.format_exc()}
        Path(job["answer"]).write_text(json.dumps(answer))
        sys.stderr.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    print("done", flush=True)
"""

#: Variables that would change what the client does.
FOREIGN = ("HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class Driver:
    """A process that pulls on demand, each time as a fresh process would."""

    def __init__(self, home: Path) -> None:
        environment = {n: v for n, v in os.environ.items() if not n.upper().startswith(FOREIGN)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "HOME": str(home)},
            cwd=home,
            start_new_session=True,
        )

    def start(self, job: Mapping[str, Any]) -> None:
        """Begins a job and does not wait."""
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Waits for the job that was begun."""
        assert self._process.stdout.readline() == "done\n"

    def kill(self) -> None:
        """Kills it and its child at once, as the machine's memory manager would."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Ends it."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True)
class Answer:
    """What a pull gave: a folder and its commit, or an error and its remedy."""

    folder: Path | None
    commit: str | None
    error: str | None
    remedy: str | None
    stages: tuple[str, ...]


class Client:
    """A user's machine: one cache, and a hub to ask.

    Attributes:
        home: Folder of everything that the client keeps.
        streams: File with all that its processes wrote to stdout and stderr, logs included.
    """

    def __init__(self, hub: HubServer, home: Path, driver: Driver) -> None:
        self.home = home
        self.streams = home / "streams.txt"
        self._hub = hub
        self._driver = driver

    def pull(self, repo: str, revision: str = "main", **options: Any) -> Answer:
        """Pulls a model; see `job` for the options."""
        self._driver.start(self.job("pull", repo, revision, **options))
        self._driver.wait()
        return self._answer()

    def start(self, call: str, repo: str) -> None:
        """Begins a call and does not wait."""
        self._driver.start(self.job(call, repo))

    def wait(self) -> Answer:
        """Waits for the call that was begun."""
        self._driver.wait()
        return self._answer()

    def pull_texts(self, repo: str, revision: str = "main", **options: Any) -> Answer:
        """Pulls config and tokenizer."""
        self._driver.start(self.job("pull_texts", repo, revision, **options))
        self._driver.wait()
        return self._answer()

    def pull_adapter(self, repo: str, revision: str = "main", **options: Any) -> Answer:
        """Pulls an adapter."""
        self._driver.start(self.job("pull_adapter", repo, revision, **options))
        self._driver.wait()
        return self._answer()

    def hf_download(self, repo: str, revision: str = "main", **options: Any) -> Answer:
        """Fetches JSON and safetensors files as other tools do, which also notes all names."""
        self._driver.start(self.job("hf_download", repo, revision, **options))
        self._driver.wait()
        return self._answer()

    def job(
        self,
        call: str,
        repo: str,
        revision: str = "main",
        *,
        token: str | None = None,
        is_offline: bool = False,
        largest_file: int | None = None,
        **environment: str,
    ) -> dict[str, Any]:
        """Describes a pull for the driver."""
        # A wait is told, and not waited for: whether it would have been enough is not asked here.
        patience = {"EDGEZOO_HUB_PATIENCE": "0.05"}
        variables = {**self._hub.environment(self.home), **patience, **environment}
        if token:
            variables["HF_TOKEN"] = token
        if is_offline:
            variables["HF_HUB_OFFLINE"] = "1"
        return {
            "call": call,
            "repo": repo,
            "revision": revision,
            "environment": variables,
            "largest_file": largest_file,
            "streams": str(self.streams),
            "answer": str(self.home / "answer.json"),
        }

    def _answer(self) -> Answer:
        path = self.home / "answer.json"
        found = json.loads(path.read_text())
        path.unlink()
        assert "crash" not in found, found["crash"]
        folder = found.get("folder")
        return Answer(
            folder=Path(folder) if folder else None,
            commit=found.get("commit"),
            error=found.get("error"),
            remedy=found.get("remedy"),
            stages=tuple(found["stages"]),
        )


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of SmolLM2-135M-Instruct, made once for all processes of a run."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "smollm2-135m"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            subprocess.run([sys.executable, ROOT / "examples" / "smollm2.py", partial], check=True)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """The process that all tests pull with."""
    driver = Driver(tmp_path_factory.mktemp("driver"))
    yield driver
    driver.close()


@pytest.fixture
def mortal_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A driver that a test may kill."""
    driver = Driver(tmp_path_factory.mktemp("mortal"))
    yield driver
    driver.close()


@pytest.fixture
def client(hub: HubServer, driver: Driver, tmp_path: Path) -> Client:
    """A machine with an empty cache."""
    return Client(hub, tmp_path, driver)
