"""A repo of the hub without its weights: config, index and headers, by requests for ranges."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core import checkpoint as checkpoints
from edgezoo_core import hub, hub_session
from edgezoo_core.errors import CheckpointError, EdgezooError
from edgezoo_core.hub_errors import explain
from edgezoo_core.scaffold.source import Source, from_folder
from edgezoo_core.types import Progress, silent

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


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
    try:
        info = hub.ask(
            repo,
            revision,
            progress=progress,
            has_copy=lambda: hub.cached(repo, revision) is not None,
        )
        if info is None:
            return _from_cache(repo, revision, progress)
        return _from_info(repo, revision, info, progress)
    except EdgezooError:
        raise
    except Exception as e:
        raise explain(e, repo, revision) from e


def _from_info(repo: str, revision: str, info: ModelInfo, progress: Progress) -> Source:
    from huggingface_hub import hf_hub_download

    if "config.json" not in {s.rfilename for s in info.siblings or []}:
        raise CheckpointError(
            f"{repo}@{revision} has no config.json", remedy="name the repo of a whole model"
        )
    stage = "reading config.json"
    progress(stage)
    path = hub_session.patiently(
        lambda: Path(hf_hub_download(repo, "config.json", revision=info.sha)), stage, progress
    )
    source = Source(
        repo=repo,
        config=checkpoints.read_config(path.parent) or {},
        revision=revision,
        license=license_of(info.card_data),
        is_gated=bool(info.gated),
        read=("config.json",),
    )
    return _with_headers(source, str(info.sha), progress)


def _with_headers(source: Source, commit: str, progress: Progress) -> Source:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    stage = "reading the headers of the weights"
    progress(stage)
    try:
        found = hub_session.patiently(
            lambda: HfApi().get_safetensors_metadata(source.repo, revision=commit), stage, progress
        )
    except NotASafetensorsRepoError:
        why = f"{source.repo} has no safetensors, and headers of other files cannot be read afar"
        return replace(source, unread=why)
    except SafetensorsParsingError as e:
        raise CheckpointError(
            f"{source.repo}@{source.revision} has a damaged safetensors file: {e}",
            remedy="report it to the repo's owner, or choose another revision",
        ) from e
    shapes = {
        name: tuple(tensor.shape)
        for file in found.files_metadata.values()
        for name, tensor in file.tensors.items()
    }
    headers = [f"headers of {name}" for name in sorted(found.files_metadata)]
    return replace(source, shapes=shapes, read=(*source.read, *headers))


def _from_cache(repo: str, revision: str, progress: Progress) -> Source:
    snapshot = hub.cached(repo, revision)
    if snapshot is None:
        raise hub.not_cached(repo, revision)
    return replace(from_folder(snapshot.folder, progress=progress), repo=repo, revision=revision)


def license_of(card: Any) -> str:
    """Returns the name of the licence that a repo's card states, or `unknown`."""
    name = getattr(card, "license", None)
    # `other` says nothing; the card then names the licence in a field of its own.
    if name == "other":
        name = getattr(card, "license_name", None) or name
    # It goes into a README as it is.
    is_name = isinstance(name, str) and re.fullmatch(r"[\w.+-]+", name, re.ASCII)
    return str(name) if is_name else "unknown"
