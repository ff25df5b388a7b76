"""What a conversion reads, in bytes: weights, texts, adapters, of a folder or of a repo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from edgezoo_core import hub_cache, remote
from edgezoo_core import tokenizer as tokenizers
from edgezoo_core.adapter_sources import NamedAdapter
from edgezoo_core.checkpoint import TEXT_FILES, Checkpoint
from edgezoo_core.errors import CheckpointError, EdgezooError
from edgezoo_core.sources import Prospect


def download_bytes(
    prospect: Prospect, checkpoint: Checkpoint | None, adapters: Sequence[NamedAdapter]
) -> int:
    """Returns what has to be downloaded; what cannot be looked at counts as nothing here.

    Args:
        prospect: What is converted.
        checkpoint: Its headers, None where they cannot be read.
        adapters: What is merged.
    """
    repo, size = prospect.repo, 0
    if repo and prospect.checkpoint is None:
        names = {n for n in repo.files if n in TEXT_FILES or n == remote.CONFIG}
        with suppress(CheckpointError):
            names |= set(checkpoint.files if checkpoint else remote.weight_files(repo))
        size = sum(repo.size_bytes(n) for n in names if not hub_cache.is_cached(repo, n))
    for adapter in adapters:
        with suppress(EdgezooError):
            size += adapter.missing_bytes()
    return size


def texts(prospect: Prospect) -> Mapping[str, int]:
    """Returns the sizes of the files of a tokenizer."""
    if prospect.checkpoint is None:
        repo = prospect.repo
        held = {n: repo.size_bytes(n) for n in repo.files} if repo else {}
    else:
        folder = prospect.checkpoint.folder
        held = {p.name: p.stat().st_size for p in folder.iterdir() if p.is_file()}
    return {n: size for n, size in held.items() if n in tokenizers.FILES}


def weights(prospect: Prospect, checkpoint: Checkpoint | None) -> tuple[int, Sequence[str]]:
    """Returns the bytes of all weights, and the files that hold them."""
    if checkpoint:
        size = sum(t.size_bytes for t in checkpoint.tensors.values())
        return size, checkpoint.weight_files
    if prospect.repo is None:
        return 0, ()
    files = remote.weight_files(prospect.repo)
    return sum(prospect.repo.size_bytes(n) for n in files), files
