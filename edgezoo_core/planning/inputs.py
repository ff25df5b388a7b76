"""What a conversion reads, in bytes: weights, texts, adapters, of a folder or of a repo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from edgezoo_core import hub, remote, sources
from edgezoo_core import tokenizer as tokenizers
from edgezoo_core.checkpoint import TEXT_FILES, Checkpoint
from edgezoo_core.errors import CheckpointError, EdgezooError
from edgezoo_core.sources import Prospect
from edgezoo_core.types import Progress, silent


def download_bytes(
    prospect: Prospect,
    checkpoint: Checkpoint | None,
    adapters: Sequence[str],
    progress: Progress = silent,
) -> int:
    """Returns what has to be downloaded; what cannot be looked at counts as nothing here.

    Args:
        prospect: What is converted.
        checkpoint: Its headers, None where they cannot be read.
        adapters: As the user names them.
        progress: Told of each stage.
    """
    repo, size = prospect.repo, 0
    if repo and prospect.checkpoint is None:
        names = {n for n in repo.sizes if n in TEXT_FILES or n == remote.CONFIG}
        with suppress(CheckpointError):
            names |= set(checkpoint.files if checkpoint else remote.weight_files(repo))
        size = sum(repo.sizes[n] for n in names if not remote.is_cached(repo, n))
    return size + sum(_adapter_bytes(text, progress) for text in adapters)


def _adapter_bytes(text: str, progress: Progress) -> int:
    with suppress(EdgezooError):
        name, _ = sources.parse_adapter(text)
        name, _, revision = name.partition("@")
        if not Path(name).expanduser().is_dir():
            found = remote.look(name, revision or "main", progress=progress)
            wanted = (*hub.ADAPTER_WEIGHTS, hub.ADAPTER_CONFIG)
            held = found.sizes.items() if found else ()
            return sum(size for n, size in held if n in wanted)
    return 0


def texts(prospect: Prospect) -> Mapping[str, int]:
    """Returns the sizes of the files of a tokenizer."""
    if prospect.checkpoint is None:
        held = dict(prospect.repo.sizes) if prospect.repo else {}
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
    return sum(prospect.repo.sizes[n] for n in files), files
