"""A repo of the hub as a source for a plugin: config, index and headers, without its weights."""

from __future__ import annotations

from dataclasses import replace

from edgezoo_core import hub_cache, remote
from edgezoo_core.errors import CheckpointError
from edgezoo_core.scaffold.source import Source, from_folder
from edgezoo_core.types import Progress, silent


def from_hub(repo: str, revision: str, *, progress: Progress = silent) -> Source:
    """Reads what the hub says about a repo, its config.json and the headers of its safetensors.

    Args:
        repo: `org/name`.
        revision: Branch, tag or commit.
        progress: Told of each stage.

    Raises:
        CheckpointError: The repo is missing or gated, has no config.json, a header is damaged, or
            the hub cannot be reached and the cache has no copy.
    """
    found = remote.look(repo, revision, progress=progress)
    if found is None:
        return _from_cache(repo, revision, progress)
    config = remote.read_config(found, progress=progress)
    if config is None:
        raise CheckpointError(
            f"{repo}@{revision} has no config.json", remedy="name the repo of a whole model"
        )
    source = Source(
        repo=repo,
        config=config,
        revision=revision,
        license=found.license,
        is_gated=found.is_gated,
        read=(remote.CONFIG,),
    )
    try:
        remote.weight_files(found)
    except CheckpointError as e:
        return replace(source, unread=e.message)
    try:
        opened = remote.open_headers(found, config, progress=progress)
    except remote.UnreadableAfarError as e:
        return replace(source, unread=e.message)
    shapes = {name: tensor.shape for name, tensor in opened.tensors.items()}
    headers = [f"headers of {name}" for name in opened.weight_files]
    return replace(source, shapes=shapes, read=(*source.read, *headers))


def _from_cache(repo: str, revision: str, progress: Progress) -> Source:
    snapshot = hub_cache.cached(repo, revision)
    if snapshot is None:
        raise hub_cache.not_cached(repo, revision)
    return replace(from_folder(snapshot.folder, progress=progress), repo=repo, revision=revision)
