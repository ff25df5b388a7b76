"""What the hub says about a repo at one commit.

It is a stranger's word, and names in it become paths here: what no hub would say is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgezoo_core import paths
from edgezoo_core.errors import CheckpointError, listing

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

#: What to do about an answer that no hub gives.
NO_HUB = "check HF_ENDPOINT, and whether a proxy or a login page is in the way"

#: Git's name of a commit: SHA-1, or SHA-256.
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Stated:
    """What the hub says about a file in its list.

    Attributes:
        size_bytes: Its size.
        sha256: Of a large file, in hex.
        git_sha1: Of a small file: what git calls it, in hex.
    """

    size_bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteRepo:
    """What the hub says about a repo at one commit.

    Attributes:
        repo: `org/name`.
        revision: Branch, tag or commit that was asked for.
        commit: The commit's hash.
        license: Of the weights; `unknown` where the repo's card does not say.
        is_gated: Whether the hub asks to accept the licence first.
        files: What it says about each file, by name.
    """

    repo: str
    revision: str
    commit: str
    license: str
    is_gated: bool
    files: Mapping[str, Stated]

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}"

    def size_bytes(self, name: str) -> int:
        """Returns the size of one of the files, 0 where the hub does not say."""
        return self.files[name].size_bytes or 0


def describe(repo: str, revision: str, info: ModelInfo) -> RemoteRepo:
    """Returns what the client understood of the hub's answer.

    Raises:
        CheckpointError: It names no commit, a file has no size that a file can have, or a name that
            leads out of the repo or that no terminal can show.
    """
    commit = info.sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise CheckpointError(
            f"what answers in place of the hub names no commit of {repo}", remedy=NO_HUB
        )
    siblings = info.siblings or []
    odd = [s.rfilename for s in siblings if not paths.is_ordinary(s.rfilename)]
    if odd:
        raise CheckpointError(
            f"{repo}@{commit}: the hub's list holds names that no file of a repo has:"
            f" {listing(map(ascii, odd))}",
            remedy="do not use this checkpoint: the list was tampered with",
        )
    files = {s.rfilename: _stated(s) for s in siblings}
    for name, stated in files.items():
        size = stated.size_bytes
        if size is not None and (not isinstance(size, int) or size < 0):
            raise CheckpointError(
                f"{repo}@{commit}: {name} has a size of {size!a} by the hub's list",
                remedy=NO_HUB,
            )
    license_name = license_of(info.card_data)
    return RemoteRepo(repo, revision, commit, license_name, bool(info.gated), files)


def license_of(card: Any) -> str:
    """Returns the name of the licence that a repo's card states, or `unknown`."""
    name = getattr(card, "license", None)
    # `other` says nothing; the card then names the licence in a field of its own.
    if name == "other":
        name = getattr(card, "license_name", None) or name
    # It goes into a README as it is.
    is_name = isinstance(name, str) and re.fullmatch(r"[\w.+-]+", name, re.ASCII)
    return str(name) if is_name else "unknown"


def _stated(sibling: RepoSibling) -> Stated:
    if sibling.lfs:
        return Stated(sibling.lfs.size, sha256=sibling.lfs.sha256)
    return Stated(sibling.size, git_sha1=sibling.blob_id)
