"""Pulls a checkpoint from the Hugging Face Hub, through its own client, and checks it.

The client brings cache, token, mirrors (HF_ENDPOINT) and offline mode. What it does not do is done
here: files are compared with the hashes that the hub states, downloads continue where they stopped
(`edgezoo_core.downloading`), and waits are shown and end (`edgezoo_core.hub_session`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgezoo_core import downloading, hub_session, paths
from edgezoo_core.checkpoint import TEXT_FILES, SourceFile, index_shards, weight_files
from edgezoo_core.errors import CheckpointError
from edgezoo_core.hub_errors import explained
from edgezoo_core.hub_repo import RemoteRepo, Stated, describe
from edgezoo_core.types import Progress, silent

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

#: Seconds that the hub may take at most to answer a question about a repo.
TIMEOUT_S = 30.0
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_SHA256 = re.compile(r"[0-9a-f]{64}")


#: Gives the path of a file of the repo.
_Fetch = Callable[[str], Path]
#: Takes the names of a repo's files and fetches those that are wanted.
_Bring = Callable[[Collection[str], _Fetch], None]


class _LacksFilesError(CheckpointError):
    """A repo, or what is here of it, is not what was asked for."""


class _NotCachedError(CheckpointError):
    """Neither the hub nor the cache gives a repo."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repo at one commit, in the local cache: its folder, and the commit's hash."""

    folder: Path
    commit: str


def pull(repo: str, revision: str = "main", *, progress: Progress = silent) -> Snapshot:
    """Asks the hub about a repo, and brings the files that a conversion needs into its cache.

    Args:
        repo: `org/name`.
        revision: Branch, tag or commit.
        progress: Told of each stage.

    Raises:
        CheckpointError: The repo is missing or gated, the revision or the token is wrong, the hub
            cannot be reached and the cache lacks the files, or a file differs from its sha256.
    """
    return _pull(repo, revision, _bring_model, progress)


def pull_texts(repo: str, revision: str = "main", *, progress: Progress = silent) -> Snapshot:
    """Brings config and tokenizer alone; otherwise like `pull`."""
    return _pull(repo, revision, _bring_texts, progress)


def pull_adapter(repo: str, revision: str = "main", *, progress: Progress = silent) -> Snapshot:
    """Brings a PEFT adapter, its config and its weights; otherwise like `pull`."""
    return _pull(repo, revision, _bring_adapter, progress)


def fetch(found: RemoteRepo, *, progress: Progress = silent) -> Snapshot:
    """Brings what `pull` brings, of a repo that the hub was asked about before.

    Args:
        found: What the hub said. The cache notes which commit its revision stands for.
        progress: Told of each stage.

    Raises:
        CheckpointError: The repo is gated, the hub does not answer, or a file differs from its
            sha256.
    """
    return _download(found, _bring_model, progress)


def fetch_texts(found: RemoteRepo, *, progress: Progress = silent) -> Snapshot:
    """Brings config and tokenizer alone; otherwise like `fetch`."""
    return _download(found, _bring_texts, progress)


def fetch_adapter(found: RemoteRepo, *, progress: Progress = silent) -> Snapshot:
    """Brings a PEFT adapter, its config and its weights; otherwise like `fetch`."""
    return _download(found, _bring_adapter, progress)


def fetch_file(found: RemoteRepo, name: str, *, progress: Progress = silent) -> Path:
    """Brings one of the files; otherwise like `fetch`."""
    with explained(found.repo, found.revision):
        return _fetch(found, name, progress)


def cached(repo: str, commit: str) -> Snapshot | None:
    """Returns a whole checkpoint from the cache without asking the hub or reading the weights.

    What is in large files is held against their names once they have been read: see
    `refuse_damaged`.
    """
    try:
        return _from_cache(repo, commit, _bring_model, is_checked=False)
    except CheckpointError:
        return None


def refuse_damaged(folder: Path, files: Sequence[SourceFile]) -> None:
    """Holds files of a snapshot that were read against what the hub stated.

    Raises:
        CheckpointError: One differs; its copy is removed from the cache.
    """
    for file in files:
        path = folder / file.name
        expected = _stored_as(path).sha256
        if expected is not None and expected != file.sha256:
            _remove(path)
            raise downloading.damaged(file.name, "sha256", file.sha256, expected)


def _refuse_different(path: Path, what: str, stated: Stated) -> None:
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


def _stored_as(path: Path) -> Stated:
    """Returns what the cache says about a file: large ones are stored under their sha256."""
    name = _blob(path).name
    return Stated(sha256=name) if _SHA256.fullmatch(name) else Stated()


def _bring_texts(names: Collection[str], fetch: _Fetch) -> None:
    for name in names:
        if name in TEXT_FILES or name == "config.json":
            fetch(name)


def _bring_model(names: Collection[str], fetch: _Fetch) -> None:
    _bring_texts(names, fetch)
    try:
        index, files = weight_files(names)
    except CheckpointError as e:
        raise _LacksFilesError(e.message, remedy=e.remedy) from e
    if index:
        files = tuple(sorted(set(index_shards(fetch(index)).values())))
    for name in files:
        if name not in names:
            raise _LacksFilesError(
                f"{index} names {name}, which the repo lacks",
                remedy="report it to the repo's owner, or pass another --revision",
            )
        fetch(name)


def _bring_adapter(names: Collection[str], fetch: _Fetch) -> None:
    weights = next((n for n in ADAPTER_WEIGHTS if n in names), None)
    if weights is None or ADAPTER_CONFIG not in names:
        raise _LacksFilesError(
            f"no PEFT adapter ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS[0]})",
            remedy="name the repo of an adapter",
        )
    fetch(ADAPTER_CONFIG)
    fetch(weights)


def _pull(repo: str, revision: str, bring: _Bring, progress: Progress) -> Snapshot:
    found = _ask(repo, revision, bring, progress)
    if found:
        return _download(found, bring, progress)
    with explained(repo, revision):
        return _from_cache(repo, revision, bring)


def _ask(repo: str, revision: str, bring: _Bring, progress: Progress) -> RemoteRepo | None:
    def has_copy() -> bool:
        try:
            _from_cache(repo, revision, bring, is_checked=False)
        except _NotCachedError:
            return False
        return True

    return ask(repo, revision, progress=progress, has_copy=has_copy)


def ask_for_adapter(repo: str, revision: str, *, progress: Progress = silent) -> RemoteRepo | None:
    """Asks the hub about an adapter's repo; otherwise like `ask`."""
    return _ask(repo, revision, _bring_adapter, progress)


def ask(
    repo: str,
    revision: str,
    *,
    progress: Progress = silent,
    has_copy: Callable[[], bool] = lambda: True,
) -> RemoteRepo | None:
    """Asks the hub about a repo; None if it does not answer and there is a copy.

    Where there is none, a hub that is out of order for a while is waited for.

    Raises:
        CheckpointError: The repo or the revision is missing, the token is wrong, the answer is none
            that a hub gives, or the hub does not answer and there is no copy.
    """
    with explained(repo, revision):
        info = _info(repo, revision, progress, has_copy)
        return describe(repo, revision, info) if info else None


def _info(
    repo: str, revision: str, progress: Progress, has_copy: Callable[[], bool]
) -> ModelInfo | None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    hub_session.refuse_odd_token()
    stage = f"asking the hub for {repo}"
    timeout = min(TIMEOUT_S, 3 * constants.HF_HUB_ETAG_TIMEOUT)
    progress(stage)
    try:
        return hub_session.patiently(
            lambda: HfApi().model_info(
                repo, revision=revision, files_metadata=True, timeout=timeout
            ),
            stage,
            progress,
            is_enough=lambda fault: not fault.is_worth_waiting or has_copy(),
        )
    except OfflineModeIsEnabled as e:
        if not has_copy():
            raise not_cached(repo, revision) from e
    except hub_session.GaveUpError as e:
        if not has_copy():
            raise not_cached(repo, revision, str(e)) from e
        logger.warning("%s: the copy in the cache is taken", e)
    return None


def _download(found: RemoteRepo, bring: _Bring, progress: Progress) -> Snapshot:
    folder: Path | None = None

    def fetch(name: str) -> Path:
        nonlocal folder
        path = _fetch(found, name, progress)
        folder = folder or path.parents[len(Path(name).parts) - 1]
        return path

    try:
        with explained(found.repo, found.revision):
            bring(found.files, fetch)
    except _LacksFilesError as e:
        raise CheckpointError(f"{found}: {e.message}", remedy=e.remedy) from e
    if folder is None:
        raise CheckpointError(f"{found} holds no model", remedy="check the repo's name")
    snapshot = Snapshot(folder, found.commit)
    _note_commit(snapshot, found.revision)
    return snapshot


def _note_commit(snapshot: Snapshot, revision: str) -> None:
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


def _fetch(found: RemoteRepo, name: str, progress: Progress) -> Path:
    from huggingface_hub import hf_hub_download

    if not paths.is_inner(name):
        raise CheckpointError(
            f"{found}: {name!a} is no name that a file has on every system",
            remedy="do not use this checkpoint: no model has such a file",
        )
    repo, commit, stated = found.repo, found.commit, found.files[name]
    brought = downloading.bring(repo, name, commit, stated, progress)
    path = hub_session.patiently(
        lambda: Path(hf_hub_download(repo, name, revision=commit)), f"downloading {name}", progress
    )
    if brought is None:
        stored = _stored_as(path)
        known = stored if stored.sha256 and not stated.sha256 else stated
        _refuse_different(path, f"{repo}: {name}", known)
    elif not path.is_symlink():
        brought.unlink()  # a cache without links keeps files in snapshots alone
    return path


def _from_cache(repo: str, revision: str, bring: _Bring, *, is_checked: bool = True) -> Snapshot:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    def fetch(name: str) -> Path:
        path = Path(hf_hub_download(repo, name, revision=folder.name, local_files_only=True))
        if is_checked:
            _refuse_different(path, f"{repo}: {name}", _stored_as(path))
        return path

    try:
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except IncompleteSnapshotError as e:
            # Some file of the repo is missing: whether it is one of ours is found out below.
            folder = Path(e.snapshot_path)
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        bring(names, fetch)
    except (_LacksFilesError, LocalEntryNotFoundError, FileNotFoundError) as e:
        raise not_cached(repo, revision) from e
    return Snapshot(folder, folder.name)


def not_cached(repo: str, revision: str, why: str = "the hub cannot be reached") -> CheckpointError:
    """Returns the error for a repo that neither the hub nor the cache gives."""
    return _NotCachedError(
        f"{why}, and {repo}@{revision} is not in the cache",
        remedy="try again when the hub can be reached (unset HF_HUB_OFFLINE, check HF_ENDPOINT), or"
        " pass a folder",
    )
