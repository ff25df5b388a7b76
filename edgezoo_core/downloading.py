"""Brings a file of a repo into the cache of huggingface_hub, in as many processes as it takes.

The client names a partial file at random, and so what a killed process had is lost. Its `http_get`
could continue at an offset, but it empties the file where a proxy answers with a page of its own,
loses up to 10 MiB with each connection, asks an address again whose signature has expired
meanwhile, waits without a word, and as long as a server likes. So the loop stands here, on the
client's session, headers and errors:

- What came is kept beside the blob that the client would make (`edgezoo_core.hub_blobs`). Each
  try asks the hub for the address of the file and continues behind what is there; what a server
  sends of it again is passed over. Nothing is written beyond the stated size.
- The client's own lock of the blob is held meanwhile: two processes that want one file, of edgezoo
  or of the client, bring it once.
- The whole file has the SHA-256 (for a small file the git hash) that the hub states before it gets
  its name. `hf_hub_download` then finds it, and makes the entry of the snapshot.
- What others left unfinished is swept once it is old and its lock is free.

Large files come in ranges over plain HTTP also where hf_xet is installed: Xet keeps no part of a
file that another process could continue. The hub serves files of up to 50 GB both ways.
"""

from __future__ import annotations

import re
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgezoo_core import hub_blobs, hub_session
from edgezoo_core.checkpoint import git_sha1, sha256
from edgezoo_core.errors import CheckpointError
from edgezoo_core.hub_blobs import Blob
from edgezoo_core.hub_repo import NO_HUB, Stated
from edgezoo_core.hub_session import PassingError
from edgezoo_core.types import Progress

if TYPE_CHECKING:
    import httpx2

_ETAG = re.compile(r"\w[\w.-]*", re.ASCII)
_RANGE = re.compile(r"bytes (?P<first>[0-9]+)-[0-9]+/(?P<total>[0-9]+|\*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def bring(repo: str, name: str, commit: str, stated: Stated, progress: Progress) -> Path | None:
    """Brings a file into the cache unless it is there.

    Args:
        repo: `org/name`.
        name: The file's.
        commit: The hash of a commit.
        stated: What the hub's list says about it.
        progress: Told of the download, and of each wait.

    Returns:
        The blob if it was brought, and so is known to be what the hub states; else None.

    Raises:
        CheckpointError: It is not what the hub states, the disk is too small, or another process
            that downloads it does not get on.
        GaveUpError: The hub or its storage does not answer.
        Exception: What the client raises.
    """
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo, name, revision=commit), str):
        return None
    stage = f"downloading {name}"
    progress(stage)
    address: str | None
    blob, address = hub_session.patiently(
        lambda: _find(repo, name, commit, stated), stage, progress
    )
    if blob.path.exists():
        return None

    def attempt() -> None:
        nonlocal address
        # An address is signed for a while: one that was used, or is old, will not do.
        found, address = address or _find(repo, name, commit, stated)[1], None
        _continue(blob, found, progress)

    blob.path.parent.mkdir(parents=True, exist_ok=True)
    hub_blobs.sweep(blob.path.parent, blob.lock.parent)
    with hub_blobs.locked(blob, progress) as has_waited:
        if blob.path.exists():
            return None
        if has_waited:
            address = None
        if blob.kept_bytes() > blob.size_bytes:
            blob.partial.unlink()
        hub_blobs.refuse_small_disk(blob)
        hub_session.patiently(attempt, stage, progress, done_bytes=blob.kept_bytes)
        if blob.stated.sha256:
            progress(f"comparing {name} with its sha256")
        if fault := differing(blob.partial, blob.what, blob.stated):
            blob.partial.unlink()
            raise fault
        return blob.partial.rename(blob.path)


def differing(path: Path, what: str, stated: Stated) -> CheckpointError | None:
    """Holds a file against the hash that the hub states; returns the fault if there is one.

    To remove the file is left to the caller.
    """
    if stated.sha256 is not None:
        kind, expected, actual = "sha256", stated.sha256, sha256(path)
    elif stated.git_sha1 is not None:
        kind, expected, actual = "the git hash", stated.git_sha1, git_sha1(path.read_bytes())
    else:
        return None
    if actual == expected:
        return None
    return damaged(what, kind, actual, expected)


def damaged(what: str, kind: str, actual: str, expected: str) -> CheckpointError:
    """Returns the error for a file whose hash is another than the hub states."""
    return CheckpointError(
        f"{what} has {kind} {actual}, the hub states {expected}; the damaged copy was removed from"
        " the cache",
        remedy="run the command again to download it afresh",
    )


def _find(repo: str, name: str, commit: str, stated: Stated) -> tuple[Blob, str]:
    """Asks the hub for a file's place in the cache, its size, and its address, which may expire."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    url = hf_hub_url(repo, name, revision=commit)
    found = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    size = found.size if found.size is not None else stated.size_bytes
    etag = found.etag or ""
    if found.commit_hash != commit or size is None or not _ETAG.fullmatch(etag):
        raise CheckpointError(
            f"what answers in place of the hub says nothing of {repo}: {name} that a hub would say",
            remedy=NO_HUB,
        )
    cache, folder = Path(constants.HF_HUB_CACHE), repo_folder_name(repo_id=repo, repo_type="model")
    if stated.sha256 is None and _SHA256.fullmatch(etag):
        stated = replace(stated, sha256=etag)
    blob = Blob(
        what=f"{repo}: {name}",
        name=name,
        path=cache / folder / "blobs" / etag,
        lock=cache / ".locks" / folder / f"{etag}.lock",
        size_bytes=size,
        stated=stated,
    )
    # As the client does: a file that Xet stores is asked for by GET, which redirects it afresh.
    return blob, url if found.xet_file_data else found.location


def _continue(blob: Blob, url: str, progress: Progress) -> None:
    """Receives what is missing, as far as one connection brings it.

    Raises:
        PassingError: The connection ended early, is too slow, or began at another place.
        CheckpointError: What is sent has another size.
    """
    from huggingface_hub import get_session
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    here = blob.kept_bytes()
    if here == blob.size_bytes:
        blob.partial.touch()  # it may be empty
        return
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if here:
        headers["Range"] = f"bytes={here}-"
    with get_session().stream(
        "GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        hf_raise_for_status(response)
        at = _begins_at(response, blob, here)
        blob.partial.touch()
        # Not for appending: where locks do not hold, two processes write the same to one place.
        with blob.partial.open("r+b", buffering=0) as partial:
            partial.seek(here)
            for chunk in hub_session.steady(response):
                new = chunk[max(0, here - at) : max(0, blob.size_bytes - at)]
                at += len(chunk)
                here += _write(partial, new)
                progress.advance(here, blob.size_bytes)
                if at > blob.size_bytes:
                    break
    if here < blob.size_bytes:
        raise PassingError("the hub's storage", "ended the file early")


def _begins_at(response: httpx2.Response, blob: Blob, asked: int) -> int:
    """Returns the offset of the first byte that comes."""
    start, total = 0, response.headers.get("content-length", "")
    if response.headers.get("content-encoding", "identity") != "identity":
        total = ""
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        match = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None or int(match["first"]) > asked:
            raise PassingError("the hub's storage", "sends another part than was asked for")
        start, total = int(match["first"]), match["total"]
    if total.isdecimal() and int(total) != blob.size_bytes:
        raise CheckpointError(
            f"{blob.what} has {blob.size_bytes} bytes on the hub, a file of {total} is sent in its"
            " place",
            remedy="check whether a proxy or a login page is in the way, and run the command again;"
            " if that does not help, report it to the repo's owner",
        )
    return start


def _write(file: IO[bytes], content: bytes) -> int:
    """Writes all of it; what fits on a full disk stays written."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
    return len(content)
