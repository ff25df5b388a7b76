"""From what the user names to the files of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgezoo_core import hub, hub_cache, repo_files
from edgezoo_core.errors import TargetError
from edgezoo_core.hub_repo import RemoteRepo
from edgezoo_core.types import Progress, silent

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet
    from edgezoo_core.sources import Source


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter as the user named it; the hub is asked about it once, when that is needed.

    Attributes:
        text: A folder or `org/name[@revision]`, with `=WEIGHT` behind it if not 1.
        progress: Told of each stage.
    """

    text: str
    progress: Progress = silent

    def parse(self) -> tuple[str, float]:
        """Returns the folder or `org/name[@revision]`, and the weight.

        Raises:
            TargetError: The weight is no number, or the folder is not there.
        """
        text = self.text
        name, _, weight = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            factor = float(weight)
        except ValueError as e:
            raise TargetError(
                f"--adapter {text}: {weight!r} is no number", remedy="write FOLDER=0.5, say"
            ) from e
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise TargetError(f"--adapter {name}: no such folder", remedy="check the path")
        return name, factor

    @cached_property
    def repo(self) -> RemoteRepo | None:
        """What the hub says; None for a folder, or where the cache alone has it.

        Raises:
            TargetError: The name will not do.
            CheckpointError: Neither the hub nor the cache gives the adapter.
        """
        name, _ = self.parse()
        if Path(name).expanduser().is_dir():
            return None
        repo, _, revision = name.partition("@")
        return hub.ask_for_adapter(repo, revision or "main", progress=self.progress)

    def missing_bytes(self) -> int:
        """Returns how much is to be downloaded.

        Raises:
            TargetError: The name will not do.
            CheckpointError: Neither the hub nor the cache gives the adapter.
        """
        repo = self.repo
        if repo is None:
            return 0
        wanted = repo.files.keys() & {*repo_files.ADAPTER_WEIGHTS, repo_files.ADAPTER_CONFIG}
        return sum(repo.size_bytes(n) for n in wanted if not hub_cache.is_cached(repo, n))

    def fetch(self) -> tuple[str, float, str]:
        """Brings the files here.

        Returns:
            The folder, the weight, and what names the adapter: the folder, or `org/name@commit`.

        Raises:
            TargetError: The name will not do.
            CheckpointError: The adapter cannot be obtained.
        """
        name, factor = self.parse()
        folder = Path(name).expanduser()
        if folder.is_dir():
            return str(folder), factor, str(folder)
        repo, _, revision = name.partition("@")
        if self.repo:
            snapshot = hub.fetch_adapter(self.repo, progress=self.progress)
        else:
            snapshot = hub.pull_adapter(repo, revision or "main", progress=self.progress)
        return str(snapshot.folder), factor, f"{repo}@{snapshot.commit}"


def name_adapters(texts: Sequence[str], progress: Progress = silent) -> tuple[NamedAdapter, ...]:
    """Returns adapters as the user named them; nothing is looked at yet."""
    return tuple(NamedAdapter(text, progress) for text in texts)


def open_adapters(named: Sequence[NamedAdapter], source: Source, progress: Progress) -> AdapterSet:
    """Opens adapters and finds the tensor of the checkpoint for each of their parts.

    Args:
        named: What the user named.
        source: What they are merged into.
        progress: Told that it begins.

    Raises:
        TargetError: A weight is no number, or a folder is not there.
        CheckpointError: An adapter cannot be obtained, read, merged exactly, or does not fit.
    """
    progress("reading the adapters")
    from edgezoo_core import adapter_merging

    return adapter_merging.open_adapters(
        [adapter.fetch() for adapter in named],
        source.checkpoint,
        source.config.get("tie_word_embeddings"),
    )
