"""A file's place in the cache of huggingface_hub while it is on its way there.

It is `blobs/<etag>.edgezoo.incomplete` beside the blob that the client would make, under the
client's own lock of that blob.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgezoo_core import hub_session
from edgezoo_core.errors import CheckpointError
from edgezoo_core.hub_repo import Stated
from edgezoo_core.types import Progress

logger = logging.getLogger(__name__)

SUFFIX = ".edgezoo.incomplete"
#: Age in seconds of what is swept: parts of ours, and of the client's, which nobody can continue.
OWN_AGE_S = 7 * 86400
CLIENT_AGE_S = 86400
#: How often the waiting for another process looks whether that gets further, in seconds.
POLL_S = 1.0
#: Another process may stand still for so many times the patience, since it may itself be waiting.
OTHERS_PATIENCE = 3
#: The least in seconds for which the client's lock is tried at all.
ONE_TRY_S = 0.01

_CLIENTS = re.compile(r"(?P<etag>[0-9a-f]{40}|[0-9a-f]{64})\.[0-9a-f]{8}\.incomplete")
_OWN = re.compile(rf"(?P<etag>\w[\w.-]*){re.escape(SUFFIX)}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Blob:
    """A file on its way into the cache.

    Attributes:
        what: Repo and name, for messages.
        name: Its name.
        path: Where the client looks for it.
        lock: The client's lock of it.
        size_bytes: Its size.
        stated: Its hashes.
    """

    what: str
    name: str
    path: Path
    lock: Path
    size_bytes: int
    stated: Stated

    @property
    def partial(self) -> Path:
        """Where that is which came so far."""
        return self.path.with_name(self.path.name + SUFFIX)

    def kept_bytes(self) -> int:
        """Returns how much of it is here."""
        return _size(self.partial)


@contextmanager
def locked(blob: Blob, progress: Progress) -> Iterator[bool]:
    """Holds the client's lock of a blob; gives whether that had to be waited for.

    Raises:
        CheckpointError: Who has it does not get on with the file.
    """
    from filelock import Timeout
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import WeakFileLock

    limit_s = OTHERS_PATIENCE * hub_session.patience_s()
    limit_s += hub_session.TRIES * HF_HUB_DOWNLOAD_TIMEOUT
    blob.lock.parent.mkdir(parents=True, exist_ok=True)
    has_waited, there, since = False, 0, time.monotonic()
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(blob.lock, timeout=POLL_S))
                break
            except Timeout:
                if not has_waited:
                    progress(f"waiting for another process, which downloads {blob.name}")
                    has_waited = True
            parts = blob.path.parent.glob(f"{blob.path.name}.*incomplete")
            now = max(map(_size, parts), default=0)
            progress.advance(now, blob.size_bytes)
            if now != there:
                there, since = now, time.monotonic()
            elif time.monotonic() - since > limit_s:
                raise CheckpointError(
                    f"another process downloads {blob.what} and has not got on for {limit_s:g} s",
                    remedy=f"end it (it holds {blob.lock}), and run the command again",
                )
        yield has_waited


def refuse_small_disk(blob: Blob) -> None:
    """Looks whether what is missing of a file fits on the disk.

    Raises:
        CheckpointError: It does not.
    """
    missing = blob.size_bytes - blob.kept_bytes()
    free = shutil.disk_usage(blob.path.parent).free
    if missing > free:
        raise CheckpointError(
            f"{blob.what} needs {missing / 1e9:.2f} GB more, the disk of the cache has"
            f" {free / 1e9:.2f} GB",
            remedy="free some space, or set HF_HOME to a folder on another disk",
        )


def sweep(blobs: Path, locks: Path) -> None:
    """Deletes old parts of files that no process has a hold on."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    for path in blobs.iterdir():
        for pattern, age_s in ((_OWN, OWN_AGE_S), (_CLIENTS, CLIENT_AGE_S)):
            match = pattern.fullmatch(path.name)
            if not match:
                continue
            try:
                if time.time() - path.lstat().st_mtime < age_s:
                    continue
                with WeakFileLock(locks / f"{match['etag']}.lock", timeout=ONE_TRY_S):
                    path.unlink()
            except (OSError, Timeout) as e:
                # Somebody's who is at it, or another user's: it costs space, no download.
                logger.debug("%s: an old part of a download, left there (%s)", path, e)
            else:
                logger.info("%s: an old part of a download, removed", path)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
