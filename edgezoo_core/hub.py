"""Pulls a checkpoint from the Hugging Face Hub, through its own client, and checks it.

The client brings cache, token, mirrors (HF_ENDPOINT), offline mode and progress bars. What it does
not do is compare a large file with the sha256 that the hub states: that is done here.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgezoo_core.checkpoint import (
    TEXT_FILES,
    SourceFile,
    index_shards,
    sha256,
    weight_files,
)
from edgezoo_core.errors import CheckpointError, EdgezooError
from edgezoo_core.types import Progress, silent

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

#: Seconds that the hub may take to answer a question about a repo.
TIMEOUT_S = 30.0
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repo at one commit, in the local cache: its folder, and the commit's hash."""

    folder: Path
    commit: str


def pull(repo: str, revision: str = "main", *, progress: Progress = silent) -> Snapshot:
    """Brings the files that a conversion needs into the cache of huggingface_hub.

    Args:
        repo: `org/name`.
        revision: Branch, tag or commit.
        progress: Told of each stage.

    Raises:
        CheckpointError: The repo is missing or gated, the revision or the token is wrong, the hub
            cannot be reached and the cache lacks the files, or a file differs from its sha256.
    """
    return _pull(repo, revision, progress, with_weights=True)


def pull_texts(repo: str, revision: str = "main", *, progress: Progress = silent) -> Snapshot:
    """Brings config and tokenizer alone; otherwise like `pull`."""
    return _pull(repo, revision, progress, with_weights=False)


def pull_adapter(text: str, *, progress: Progress = silent) -> Snapshot:
    """Downloads a PEFT adapter: its config and its weights.

    Args:
        text: `org/name[@revision]`.
        progress: Told of each file.

    Raises:
        CheckpointError: It cannot be had, or holds no adapter.
    """
    repo, _, revision = text.partition("@")
    revision = revision or "main"
    try:
        info = _ask(repo, revision)
        if info is None:
            raise _not_cached(repo, revision)
        held = {s.rfilename: s for s in info.siblings or []}
        weights = next((n for n in ADAPTER_WEIGHTS if n in held), None)
        if weights is None or ADAPTER_CONFIG not in held:
            raise CheckpointError(
                f"{text} holds no PEFT adapter ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS[0]})",
                remedy="name the repo of an adapter",
            )
        for name in (ADAPTER_CONFIG, weights):
            progress(f"downloading {name}")
            lfs = held[name].lfs
            path = _fetch(repo, name, info.sha or "", lfs.sha256 if lfs else None, local_only=False)
        return Snapshot(path.parent, info.sha or "")
    except EdgezooError:
        raise
    except Exception as e:
        raise _explain(e, repo, revision) from e


def cached(repo: str, commit: str) -> Snapshot | None:
    """Returns a whole checkpoint from the cache without asking the hub or reading the weights.

    What is in large files is held against their names once they have been read: see
    `refuse_damaged`.
    """
    try:
        return _from_cache(repo, commit, with_weights=True, is_checked=False)
    except CheckpointError:
        return None


def refuse_damaged(folder: Path, files: Sequence[SourceFile]) -> None:
    """Holds files of a snapshot that were read against what the hub stated.

    Raises:
        CheckpointError: One differs; its copy is removed from the cache.
    """
    for file in files:
        path = folder / file.name
        stored_as = path.resolve().name
        if _SHA256.fullmatch(stored_as) and stored_as != file.sha256:
            raise _damaged(path, file.name, file.sha256, stored_as)


def _damaged(path: Path, name: str, actual: str, expected: str) -> CheckpointError:
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    return CheckpointError(
        f"{name} has sha256 {actual}, the hub states {expected}; the damaged copy was removed from"
        " the cache",
        remedy="run the command again to download it afresh",
    )


def _pull(repo: str, revision: str, progress: Progress, *, with_weights: bool) -> Snapshot:
    progress(f"asking the hub for {repo}")
    try:
        info = _ask(repo, revision)
        if info is None:
            return _from_cache(repo, revision, with_weights=with_weights)
        snapshot = _download(repo, info, progress, with_weights=with_weights)
        _note_commit(snapshot, revision)
        return snapshot
    except EdgezooError:
        raise
    except Exception as e:
        raise _explain(e, repo, revision) from e


def _ask(repo: str, revision: str) -> ModelInfo | None:
    """Asks the hub about a repo; None if it cannot be reached."""
    import httpx2  # huggingface_hub's own client
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    except HfHubHTTPError as e:
        if e.response is not None and e.response.status_code >= 500:
            logger.warning("the hub answers %s; trying the cache", e.response.status_code)
            return None
        raise
    except (OfflineModeIsEnabled, httpx2.TransportError) as e:
        logger.warning("the hub cannot be reached (%s); trying the cache", type(e).__name__)
        return None


def _download(repo: str, info: ModelInfo, progress: Progress, *, with_weights: bool) -> Snapshot:
    commit = info.sha or ""
    siblings = {s.rfilename: s for s in info.siblings or []}
    folder: Path | None = None

    def fetch(name: str) -> Path:
        nonlocal folder
        lfs = siblings[name].lfs
        progress(f"downloading {name}")
        path = _fetch(repo, name, commit, lfs.sha256 if lfs else None, local_only=False)
        folder = folder or path.parents[len(Path(name).parts) - 1]
        return path

    for name in siblings:
        if name in TEXT_FILES or name == "config.json":
            fetch(name)
    if with_weights:
        try:
            index, files = weight_files(siblings)
        except CheckpointError as e:
            raise CheckpointError(f"{repo}@{commit}: {e.message}", remedy=e.remedy) from e
        if index:
            files = tuple(sorted(set(index_shards(fetch(index)).values())))
        for name in files:
            if name not in siblings:
                raise CheckpointError(
                    f"{repo}@{commit}: {index} names {name}, which the repo lacks",
                    remedy="report it to the repo's owner, or pass another --revision",
                )
            fetch(name)
    if folder is None:
        raise CheckpointError(f"{repo}@{commit} holds no model", remedy="check the repo's name")
    return Snapshot(folder, commit)


def _note_commit(snapshot: Snapshot, revision: str) -> None:
    """Notes in the cache which commit a branch stands for, as the client does.

    The files were asked for by commit, so the client itself did not; without the note the cache
    does not answer for the branch while the hub cannot be reached.
    """
    if revision == snapshot.commit:
        return
    note = snapshot.folder.parents[1] / "refs" / revision
    part = note.with_name(f"{note.name}.{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(snapshot.commit, encoding="utf-8")
        part.replace(note)
    except OSError as e:  # a read-only cache
        logger.info("%s: not written (%s)", note, e.strerror or e)


def _fetch(
    repo: str,
    name: str,
    commit: str,
    expected: str | None,
    *,
    local_only: bool,
    is_checked: bool = True,
) -> Path:
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(repo, name, revision=commit, local_files_only=local_only))
    # Large files are stored under their sha256, so a cached one can be checked without the hub.
    stored_as = path.resolve().name
    if expected is None and _SHA256.fullmatch(stored_as):
        expected = stored_as
    if is_checked and expected is not None and (actual := sha256(path)) != expected:
        raise _damaged(path, f"{repo}: {name}", actual, expected)
    return path


def _from_cache(
    repo: str, revision: str, *, with_weights: bool, is_checked: bool = True
) -> Snapshot:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except IncompleteSnapshotError as e:
            # Some file of the repo is missing: whether it is one of ours is found out below.
            folder = Path(e.snapshot_path)
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        files = tuple(n for n in names if n in TEXT_FILES)
        if with_weights:
            index, weights = weight_files(names)
            if index:
                weights = tuple(sorted(set(index_shards(folder / index).values())))
            files += weights
        for name in files:
            _fetch(repo, name, folder.name, None, local_only=True, is_checked=is_checked)
    except (LocalEntryNotFoundError, FileNotFoundError) as e:
        raise _not_cached(repo, revision) from e
    except CheckpointError as e:
        if e.message.startswith("no weights"):
            raise _not_cached(repo, revision) from e
        raise
    return Snapshot(folder, folder.name)


def _not_cached(repo: str, revision: str) -> CheckpointError:
    return CheckpointError(
        f"the hub cannot be reached, and {repo}@{revision} is not in the cache",
        remedy="connect and try again (unset HF_HUB_OFFLINE, check HF_ENDPOINT), or pass a folder",
    )


def _explain(error: Exception, repo: str, revision: str) -> CheckpointError:
    """Turns an exception of the client into a sentence with its remedy. Most special first."""
    from huggingface_hub import errors, get_token
    from huggingface_hub.constants import ENDPOINT

    page = f"{ENDPOINT}/{repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    table: list[tuple[bool, str, str]] = [
        (
            isinstance(error, errors.GatedRepoError),
            f"{repo} is gated, and "
            + ("your account has no access" if get_token() else "you are not logged in"),
            f"accept the licence on {page}, then run: hf auth login",
        ),
        (
            isinstance(error, errors.RevisionNotFoundError),
            f"{repo} has no revision {revision!r}",
            f"choose a branch, tag or commit from {page}/commits",
        ),
        (
            status == 401 and get_token() is not None,
            f"the hub does not accept your token (asked for {repo})",
            "run: hf auth login (or correct HF_TOKEN)",
        ),
        (
            isinstance(error, errors.RepositoryNotFoundError),
            f"the hub has no model {repo}, or it is private",
            "check the spelling; for a private one, run: hf auth login",
        ),
        (
            isinstance(error, errors.LocalEntryNotFoundError),
            f"the download of {repo}@{revision} failed: the hub cannot be reached",
            "check the connection and run the command again",
        ),
        (
            isinstance(error, errors.EntryNotFoundError),
            f"{repo}@{revision}: a file of the list is not there",
            "run the command again, or choose another --revision",
        ),
        (
            isinstance(error, errors.HFValidationError),
            f"{repo!r} is no valid repo name",
            "write org/name",
        ),
        (
            isinstance(error, OSError) and getattr(error, "errno", None) == 28,
            f"no space left on the disk of the cache while downloading {repo}",
            "free some space, or set HF_HOME to another disk",
        ),
    ]
    for applies, message, remedy in table:
        if applies:
            return CheckpointError(message, remedy=remedy)
    detail = f"status {status}" if status else f"{type(error).__name__}: {error}"
    return CheckpointError(
        f"the download of {repo}@{revision} failed ({detail})",
        remedy="run the command again; if it persists, see the hub's status page",
    )
