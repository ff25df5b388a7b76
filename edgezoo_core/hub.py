"""Pulls a checkpoint from the Hugging Face Hub, through its own client, and checks it.

The client brings cache, token, mirrors (HF_ENDPOINT) and offline mode. What it does not do is done
here: files are compared with the hashes that the hub states, downloads continue where they stopped
(`edgezoo_core.downloading`), and waits are shown and end (`edgezoo_core.hub_session`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgezoo_core import downloading, hub_cache, hub_session, paths, repo_files
from edgezoo_core.errors import CheckpointError
from edgezoo_core.hub_cache import Snapshot
from edgezoo_core.hub_errors import explained
from edgezoo_core.hub_repo import RemoteRepo, describe
from edgezoo_core.repo_files import Bring
from edgezoo_core.types import Progress, silent

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

#: Seconds that the hub may take at most to answer a question about a repo.
TIMEOUT_S = 30.0


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
    return _pull(repo, revision, repo_files.bring_model, progress)


def pull_texts(repo: str, revision: str = "main", *, progress: Progress = silent) -> Snapshot:
    """Brings config and tokenizer alone; otherwise like `pull`."""
    return _pull(repo, revision, repo_files.bring_texts, progress)


def pull_adapter(repo: str, revision: str = "main", *, progress: Progress = silent) -> Snapshot:
    """Brings a PEFT adapter, its config and its weights; otherwise like `pull`."""
    return _pull(repo, revision, repo_files.bring_adapter, progress)


def fetch(found: RemoteRepo, *, progress: Progress = silent) -> Snapshot:
    """Brings what `pull` brings, of a repo that the hub was asked about before.

    Args:
        found: What the hub said. The cache notes which commit its revision stands for.
        progress: Told of each stage.

    Raises:
        CheckpointError: The repo is gated, the hub does not answer, or a file differs from its
            sha256.
    """
    return _download(found, repo_files.bring_model, progress)


def fetch_texts(found: RemoteRepo, *, progress: Progress = silent) -> Snapshot:
    """Brings config and tokenizer alone; otherwise like `fetch`."""
    return _download(found, repo_files.bring_texts, progress)


def fetch_adapter(found: RemoteRepo, *, progress: Progress = silent) -> Snapshot:
    """Brings a PEFT adapter, its config and its weights; otherwise like `fetch`."""
    return _download(found, repo_files.bring_adapter, progress)


def fetch_file(found: RemoteRepo, name: str, *, progress: Progress = silent) -> Path:
    """Brings one of the files; otherwise like `fetch`."""
    with explained(found.repo, found.revision):
        return _fetch(found, name, progress)


def _pull(repo: str, revision: str, bring: Bring, progress: Progress) -> Snapshot:
    found = _ask(repo, revision, bring, progress)
    if found:
        return _download(found, bring, progress)
    with explained(repo, revision):
        return hub_cache.from_cache(repo, revision, bring)


def _ask(repo: str, revision: str, bring: Bring, progress: Progress) -> RemoteRepo | None:
    def has_copy() -> bool:
        try:
            hub_cache.from_cache(repo, revision, bring, is_checked=False)
        except hub_cache.NotCachedError:
            return False
        return True

    return ask(repo, revision, progress=progress, has_copy=has_copy)


def ask_for_adapter(repo: str, revision: str, *, progress: Progress = silent) -> RemoteRepo | None:
    """Asks the hub about an adapter's repo; otherwise like `ask`."""
    return _ask(repo, revision, repo_files.bring_adapter, progress)


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
            raise hub_cache.not_cached(repo, revision) from e
    except hub_session.GaveUpError as e:
        if not has_copy():
            raise hub_cache.not_cached(repo, revision, str(e)) from e
        logger.warning("%s: the copy in the cache is taken", e)
    return None


def _download(found: RemoteRepo, bring: Bring, progress: Progress) -> Snapshot:
    folder: Path | None = None

    def fetch(name: str) -> Path:
        nonlocal folder
        path = _fetch(found, name, progress)
        folder = folder or path.parents[len(Path(name).parts) - 1]
        return path

    try:
        with explained(found.repo, found.revision):
            bring(found.files, fetch)
    except repo_files.LacksFilesError as e:
        raise CheckpointError(f"{found}: {e.message}", remedy=e.remedy) from e
    if folder is None:
        raise CheckpointError(f"{found} holds no model", remedy="check the repo's name")
    snapshot = Snapshot(folder, found.commit)
    hub_cache.note_commit(snapshot, found.revision)
    return snapshot


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
        stored = hub_cache.stored_as(path)
        known = stored if stored.sha256 and not stated.sha256 else stated
        hub_cache.refuse_different(path, f"{repo}: {name}", known)
    elif not path.is_symlink():
        brought.unlink()  # a cache without links keeps files in snapshots alone
    return path
