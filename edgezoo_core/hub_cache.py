"""What the cache of huggingface_hub holds of a repo, without asking the hub."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgezoo_core import downloading, paths
from edgezoo_core.checkpoint import SourceFile
from edgezoo_core.errors import CheckpointError
from edgezoo_core.hub_repo import RemoteRepo, Stated
from edgezoo_core.repo_files import Bring, LacksFilesError, bring_model

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")


class NotCachedError(CheckpointError):
    """Neither the hub nor the cache gives a repo."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repo at one commit, in the local cache: its folder, and the commit's hash."""

    folder: Path
    commit: str


def cached(repo: str, commit: str) -> Snapshot | None:
    """Returns a whole checkpoint from the cache without asking the hub or reading the weights.

    What is in large files is held against their names once they have been read: see
    `refuse_damaged`.
    """
    try:
        return from_cache(repo, commit, bring_model, is_checked=False)
    except CheckpointError:
        return None


def is_cached(found: RemoteRepo, name: str) -> bool:
    """Says whether a file of the repo is in the client's cache already."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(found.repo, name, revision=found.commit), str)


def refuse_damaged(folder: Path, files: Sequence[SourceFile]) -> None:
    """Holds files of a snapshot that were read against what the hub stated.

    Raises:
        CheckpointError: One differs; its copy is removed from the cache.
    """
    for file in files:
        path = folder / file.name
        expected = stored_as(path).sha256
        if expected is not None and expected != file.sha256:
            _remove(path)
            raise downloading.damaged(file.name, "sha256", file.sha256, expected)


def refuse_different(path: Path, what: str, stated: Stated) -> None:
    """Holds a file of a snapshot against its hash.

    Raises:
        CheckpointError: It differs; its copy is removed from the cache.
    """
    if fault := downloading.differing(path, what, stated):
        _remove(path)
        raise fault


def _remove(path: Path) -> None:
    _blob(path).unlink()
    path.unlink(missing_ok=True)


def _blob(path: Path) -> Path:
    """Returns what a file of a snapshot is a link to, itself if it is none.

    The next link only: a blob may be one in turn, into a store that repos share, where it has
    another name.
    """
    return path.parent / path.readlink() if path.is_symlink() else path


def stored_as(path: Path) -> Stated:
    """Returns what the cache says about a file: large ones are stored under their sha256."""
    name = _blob(path).name
    return Stated(sha256=name) if _SHA256.fullmatch(name) else Stated()


def note_commit(snapshot: Snapshot, revision: str) -> None:
    """Notes in the cache which commit a branch stands for, as the client does.

    The files were asked for by commit, so the client itself did not; without the note the cache
    does not answer for the branch while the hub cannot be reached.
    """
    # A revision comes from a manifest, too, and a note is a file: its name stays in the folder.
    if revision == snapshot.commit or not paths.is_inner(revision):
        return
    note = snapshot.folder.parents[1] / "refs" / revision
    part = note.with_name(f"{note.name}.{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(snapshot.commit, encoding="utf-8")
        part.replace(note)
    except OSError as e:  # a read-only cache
        logger.info("%s: not written (%s)", note, e.strerror or e)


def from_cache(repo: str, revision: str, bring: Bring, *, is_checked: bool = True) -> Snapshot:
    """Finds files of a repo.

    Args:
        repo: `org/name`.
        revision: Branch, tag or commit.
        bring: Says which files.
        is_checked: Whether they are read, and held against the hashes that they are stored under.

    Raises:
        NotCachedError: One of them is not there.
        CheckpointError: One differs from its hash; its copy is removed.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    def fetch(name: str) -> Path:
        path = Path(hf_hub_download(repo, name, revision=folder.name, local_files_only=True))
        if is_checked:
            refuse_different(path, f"{repo}: {name}", stored_as(path))
        return path

    try:
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except IncompleteSnapshotError as e:
            # Some file of the repo is missing: whether it is one of ours is found out below.
            folder = Path(e.snapshot_path)
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        bring(names, fetch)
    except (LacksFilesError, LocalEntryNotFoundError, FileNotFoundError) as e:
        raise not_cached(repo, revision) from e
    return Snapshot(folder, folder.name)


def not_cached(repo: str, revision: str, why: str = "the hub cannot be reached") -> CheckpointError:
    """Returns the error for a repo that neither the hub nor the cache gives."""
    return NotCachedError(
        f"{why}, and {repo}@{revision} is not in the cache",
        remedy="try again when the hub can be reached (unset HF_HUB_OFFLINE, check HF_ENDPOINT), or"
        " pass a folder",
    )
