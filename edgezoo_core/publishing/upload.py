"""Files to a repo of the hub, through huggingface_hub: all of them in one commit, or none."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core.checkpoint import git_sha1, sha256
from edgezoo_core.errors import EdgezooError, PublishError, listing
from edgezoo_core.hub_session import keep_token_home, limit_time
from edgezoo_core.publishing.card import MARK
from edgezoo_core.publishing.faults import explain
from edgezoo_core.types import Progress, silent

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

logger = logging.getLogger(__name__)

README = "README.md"
#: Seconds that the hub may stay silent; a commit of large files takes it a while.
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class File:
    """A file to publish.

    Attributes:
        name: In the repo.
        content: Where it is, or what is in it.
    """

    name: str
    content: Path | bytes

    @cached_property
    def size_bytes(self) -> int:
        """Its length."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Its sha256 in hex."""
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        return sha256(self.content)

    def equals(self, there: RepoSibling) -> bool:
        """Whether the hub has the same bytes."""
        if there.lfs:
            return there.lfs.sha256 == self.sha256
        if there.size != self.size_bytes:
            return False
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return there.blob_id == git_sha1(content)


@dataclass(frozen=True, slots=True)
class Published:
    """What became of it.

    Attributes:
        repo: Where it is.
        url: Of the commit, or of the pull request.
        commit: Its hash.
        is_pull_request: Whether somebody has to merge it first.
        sent: Names of the files that are new or other than before; none if all were there.
    """

    repo: str
    url: str
    commit: str
    is_pull_request: bool
    sent: tuple[str, ...]


def publish(
    repo: str,
    files: Sequence[File],
    message: str,
    *,
    pull_request: bool = False,
    private: bool | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Published:
    """Puts files into a repo, which is made if there is none.

    The token goes to the hub's own origin alone, wherever an answer of the hub may lead.

    Args:
        repo: `org/name`.
        files: All of them come in one commit, after the last byte of them is there.
        message: Of the commit.
        pull_request: Whether to propose the commit to the repo's owner.
        private: Whether a new repo is private; None takes what its owner has as default.
        force: Whether files of other content may be replaced.
        progress: Told of each stage.

    Raises:
        PublishError: There is no token, or the hub refuses, or has other files of these names, or
            cannot be reached, or has something else afterwards.
    """
    _refuse_without_token(repo)
    with _keeping_token_home():
        from huggingface_hub import HfApi

        api = HfApi()
        try:
            return _publish(api, repo, files, message, pull_request, private, force, progress)
        except EdgezooError:
            raise
        except Exception as e:
            raise explain(e, repo) from e


def _publish(
    api: HfApi,
    repo: str,
    files: Sequence[File],
    message: str,
    pull_request: bool,
    private: bool | None,
    force: bool,
    progress: Progress,
) -> Published:
    from huggingface_hub import CommitOperationAdd

    progress(f"asking the hub for {repo}")
    there = _look(api, repo)
    if there is None:
        progress(f"creating {repo}")
        api.create_repo(repo, private=private)
        there = api.model_info(repo, files_metadata=True)
    changed = _changed(api, there, files, force=force)
    if not changed:
        url = f"{api.endpoint}/{repo}/commit/{there.sha}"
        return Published(repo, url, str(there.sha), False, ())
    size = sum(f.size_bytes for f in changed)
    progress(f"uploading {len(changed)} files, {size / 1e6:.1f} MB")
    done = api.create_commit(
        repo,
        [CommitOperationAdd(f.name, f.content) for f in changed],
        commit_message=message,
        create_pr=pull_request,
        # What was looked at is what is changed.
        parent_commit=there.sha,
    )
    progress("comparing what the hub has")
    revision = done.pr_revision if pull_request else done.oid
    _compare(api.model_info(repo, revision=revision, files_metadata=True), changed)
    seen_at = done.pr_url if pull_request else done.commit_url
    return Published(repo, str(seen_at), done.oid, pull_request, tuple(f.name for f in changed))


def _look(api: HfApi, repo: str) -> ModelInfo | None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return api.model_info(repo, files_metadata=True)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError as e:
        # Without a valid token, the hub says of every private repo and of every new name: 401.
        if e.response.status_code == 401:
            raise
        return None


def _changed(api: HfApi, there: ModelInfo, files: Sequence[File], *, force: bool) -> list[File]:
    siblings = {s.rfilename: s for s in there.siblings or []}
    changed = [f for f in files if f.name not in siblings or not f.equals(siblings[f.name])]
    clashes = [f.name for f in changed if f.name in siblings]
    if README in clashes and _is_ours(api, there):
        clashes.remove(README)
    if clashes and not force:
        raise PublishError(
            f"{there.id} has other files of these names: {listing(clashes)}",
            remedy="choose another repo, or pass --force to replace them",
        )
    return changed


def _is_ours(api: HfApi, there: ModelInfo) -> bool:
    path = Path(api.hf_hub_download(there.id, README, revision=there.sha))
    return MARK in path.read_text(encoding="utf-8", errors="replace")


def _compare(there: ModelInfo, files: Sequence[File]) -> None:
    siblings = {s.rfilename: s for s in there.siblings or []}
    wrong = [f.name for f in files if f.name not in siblings or not f.equals(siblings[f.name])]
    if wrong:
        raise PublishError(
            f"{there.id} has something else than was sent: {listing(wrong)}",
            remedy="did a file change meanwhile? Run the command again with --force",
        )


def _refuse_without_token(repo: str) -> None:
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as e:
        raise explain(e, repo) from e
    if get_token() is None:
        raise PublishError(
            f"publishing to {repo} needs a token of the hub, and there is none",
            remedy="run: hf auth login (with a token that has write access)",
        )


@contextmanager
def _keeping_token_home() -> Iterator[None]:
    """Lets huggingface_hub's client send the token to the hub's own origin only.

    The client drops it where a redirect leaves the origin, but sends it wherever the answer about
    an upload says that the upload is to be confirmed. It also would wait forever, for an answer and
    for its end.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def guarded() -> httpx2.Client:
        client = default_client_factory()
        hooks: dict[str, list[Any]] = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks["request"], keep_token_home, limit_time]}
        client.timeout = TIMEOUT_S
        return client

    set_client_factory(guarded)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)
