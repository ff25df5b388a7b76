"""From an artifact, or from what the user names, to the folder with a tokenizer."""

from __future__ import annotations

from pathlib import Path

from edgezoo_core import hub, manifests, tokenizer
from edgezoo_core.artifact import Artifact
from edgezoo_core.cards import HUB_REPO
from edgezoo_core.errors import ArtifactError, TargetError
from edgezoo_core.types import Progress, silent


def text_folder(converted: Artifact, progress: Progress = silent) -> Path:
    """Returns the folder with the tokenizer of an artifact's source.

    Raises:
        ArtifactError: There is no manifest, or the folder is gone.
        CheckpointError: The hub's copy cannot be had.
    """
    if converted.manifest is None:
        raise ArtifactError(
            f"{converted.path} has no manifest that names its source",
            remedy="pass --tokenizer with a folder or a hub repo",
        )
    manifests.require(converted.manifest, converted.path, "checkpoint")
    origin = converted.manifest["checkpoint"]
    if origin["repo"]:
        return hub.pull_texts(origin["repo"], origin["commit"], progress=progress).folder
    folder = Path(origin["folder"] or "")
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder}, from which {converted.path.name} was made, is gone",
            remedy="pass --tokenizer with a folder or a hub repo",
        )
    return folder


def known_texts(converted: Artifact, progress: Progress = silent) -> Path | None:
    """Returns the folder with the texts of an artifact's source; None if it holds no tokenizer.

    Raises:
        ArtifactError: There is no manifest, or the folder is gone.
        CheckpointError: The hub's copy cannot be had.
    """
    folder = text_folder(converted, progress)
    return folder if any((folder / name).is_file() for name in tokenizer.FILES) else None


def tokenizer_folder(text: str, progress: Progress = silent) -> Path:
    """Returns the folder of a tokenizer that the user named: a folder, or a hub repo.

    Raises:
        TargetError: It is neither.
        CheckpointError: The hub's copy cannot be had.
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    repo, _, revision = text.partition("@")
    if not HUB_REPO.fullmatch(repo):
        raise TargetError(
            f"{text} is neither a folder nor a hub repo", remedy="write a path, or org/name"
        )
    return hub.pull_texts(repo, revision or "main", progress=progress).folder
