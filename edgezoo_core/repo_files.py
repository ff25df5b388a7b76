"""Which files of a repo make a model, its texts, or an adapter, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from edgezoo_core.checkpoint import TEXT_FILES, index_shards, weight_files
from edgezoo_core.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

#: Gives the path of a file of the repo.
Fetch = Callable[[str], Path]
#: Takes the names of a repo's files and fetches those that are wanted.
Bring = Callable[[Collection[str], Fetch], None]


class LacksFilesError(CheckpointError):
    """A repo, or what is here of it, is not what was asked for."""


def bring_texts(names: Collection[str], fetch: Fetch) -> None:
    """Fetches config and tokenizer."""
    for name in names:
        if name in TEXT_FILES or name == "config.json":
            fetch(name)


def bring_model(names: Collection[str], fetch: Fetch) -> None:
    """Fetches what a conversion needs.

    Raises:
        LacksFilesError: There are no weights, or the index names what is not there.
        CheckpointError: The index is malformed, or names a path outside of the repo.
    """
    bring_texts(names, fetch)
    try:
        index, files = weight_files(names)
    except CheckpointError as e:
        raise LacksFilesError(e.message, remedy=e.remedy) from e
    if index:
        files = tuple(sorted(set(index_shards(fetch(index)).values())))
    for name in files:
        if name not in names:
            raise LacksFilesError(
                f"{index} names {name}, which the repo lacks",
                remedy="report it to the repo's owner, or pass another --revision",
            )
        fetch(name)


def bring_adapter(names: Collection[str], fetch: Fetch) -> None:
    """Fetches a PEFT adapter, its config and its weights.

    Raises:
        LacksFilesError: There is none.
    """
    weights = next((n for n in ADAPTER_WEIGHTS if n in names), None)
    if weights is None or ADAPTER_CONFIG not in names:
        raise LacksFilesError(
            f"no PEFT adapter ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS[0]})",
            remedy="name the repo of an adapter",
        )
    fetch(ADAPTER_CONFIG)
    fetch(weights)
