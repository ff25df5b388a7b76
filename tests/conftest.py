"""Fixtures for all tests."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_site import FakeSite

if TYPE_CHECKING:
    from types import ModuleType

    from hub_server import HubServer

# No test asks the public hub. huggingface_hub reads this when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# Nor does one fill the cache of who runs it; the processes of a run share one.
if "EDGEZOO_TESTS_CACHE" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="edgezoo-tests-")
    os.environ["EDGEZOO_TESTS_CACHE"] = _CACHE.name
os.environ["EDGEZOO_CACHE"] = os.environ["EDGEZOO_TESTS_CACHE"]


def _keep_to_own_cores() -> None:
    """Keeps the processes of a parallel run, and what they start, out of each other's way."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        number, count = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number::count] or cores)


_keep_to_own_cores()


def _load_hub_server() -> ModuleType:
    # --import-mode=importlib puts no test folder on sys.path, so a sibling is loaded by its path.
    path = Path(__file__).with_name("hub_server.py")
    spec = importlib.util.spec_from_file_location("edgezoo_tests_hub_server", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def hub_server() -> ModuleType:
    """The module of the loopback hub."""
    return _load_hub_server()


@pytest.fixture
def hub(hub_server: ModuleType) -> Iterator[HubServer]:
    """A running loopback hub with no repos in it."""
    server = hub_server.HubServer()
    yield server
    server.stop()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    monkeypatch.delenv("EDGEZOO_PLUGINS", raising=False)
    monkeypatch.delenv("EDGEZOO_STRICT", raising=False)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    fake = FakeSite(folder)
    yield fake
    for name in [n for n in sys.modules if n.partition(".")[0] in fake.packages]:
        del sys.modules[name]
