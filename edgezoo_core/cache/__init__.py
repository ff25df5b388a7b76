"""Keeps what conversions would otherwise compute again; what is not certainly right is a miss."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgezoo_core import locks
from edgezoo_core.cache import disk
from edgezoo_core.cache.entry import (
    KEY,
    KINDS,
    RECORD,
    Adding,
    Entry,
    Kind,
    canonical,
    digest,
    examine,
    write_record,
)
from edgezoo_core.cache.settings import REMEDY, default_limit_bytes, default_root
from edgezoo_core.errors import DISK_FAULTS, CacheError

__all__ = ["Cache", "Entry", "Adding", "Kind", "KINDS", "digest", "default_root"]

logger = logging.getLogger(__name__)

_PARTIAL = re.compile(r"[0-9]+-[0-9a-f]{16}")
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}


class Cache:
    """Entries at `<root>/<kind>/<key>/`, shared by processes.

    Whatever else is in the root is not touched. An entry that was got is not pinned: another
    process may evict it, so open its files at once.

    Args:
        root: The folder; by default what the environment says.
        limit_bytes: Adding evicts what was not used for longest until the rest takes no more; by
            default what the environment says.
    """

    def __init__(self, root: Path | None = None, limit_bytes: int | None = None) -> None:
        self.root = default_root() if root is None else root.absolute()
        self.limit_bytes = default_limit_bytes() if limit_bytes is None else limit_bytes

    def get(self, kind: Kind, parts: Mapping[str, Any]) -> Entry | None:
        """Returns the entry of exactly these parts, every byte checked. Removes a damaged one."""
        entry = self._sound(self._folder(kind) / digest(parts), parts)
        if entry:
            now = time.time_ns()
            with suppress(OSError):  # a cache that can only be read serves all the same
                os.utime(entry.folder / RECORD, ns=(now, now))
        return entry

    def find(self, kind: Kind, accepts: Callable[[Mapping[str, Any]], bool]) -> Entry | None:
        """Returns the newest entry whose parts are accepted, checked as by `get`."""
        found = [self._sound(folder, None) for folder in self._folders(kind)]
        for entry in sorted(filter(None, found), key=lambda e: e.created, reverse=True):
            if accepts(entry.parts) and (checked := self.get(kind, entry.parts)):
                return checked
        return None

    @contextmanager
    def adding(self, kind: Kind, parts: Mapping[str, Any] | None = None) -> Iterator[Adding]:
        """Gives a folder to write into, which becomes an entry when the block ends well.

        Parts that are known only once the work is done are set in the block.

        If another process published the same entry meanwhile, theirs stays and is the result.

        Raises:
            CacheError: The cache cannot be written, or the folder holds more than plain files.
        """
        with _telling(self.root):
            self._sweep()
            folder, descriptor = self._begin()
        try:
            adding = Adding(folder, parts or {})
            with _telling(self.root, DISK_FAULTS):
                yield adding
            parts = adding.parts
            target = self._folder(kind) / digest(parts)
            with _telling(self.root):
                write_record(adding, kind, parts)
                adding.entry = self._publish(folder, target, parts)
        finally:
            disk.delete(folder)
            os.close(descriptor)
        self._evict(keep=target)

    @contextmanager
    def lock(
        self, name: str, key: str, waiting: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Lets one process pass at a time; `waiting` is told once whose turn it is instead.

        A process that dies frees its locks; for one that lives and stands still there is no limit.
        The files stay: to remove one would be a race.

        Raises:
            CacheError: The cache cannot be written, or its disk has no locks.
        """
        if not (name.isidentifier() and KEY.fullmatch(key)):
            raise CacheError(f"no lock can be named {name!r}, {key!r}", remedy="pass --no-cache")
        path = self.root / "locks" / f"{name}-{key}.lock"
        with _telling(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        with file:
            if locks.try_lock(file.fileno()) is False and waiting:
                waiting(locks.holder(file.fileno()))
            with _telling(self.root):
                fcntl.flock(file, fcntl.LOCK_EX)
            locks.sign(file.fileno())
            try:
                yield
            finally:  # not left to closing the file, which a forked child has open, too
                fcntl.flock(file, fcntl.LOCK_UN)

    def list(self) -> tuple[Entry, ...]:
        """Returns the entries, last used first. Does not read their files; skips damaged ones."""
        found = self._examined(is_deep=False)
        entries = [e for e, fault in found if isinstance(e, Entry) and not fault]
        return tuple(sorted(entries, key=lambda e: e.last_used, reverse=True))

    def verify(self) -> tuple[tuple[Entry | Path, str | None], ...]:
        """Checks every byte; returns entries, or folders without good record, and their faults."""
        return tuple(self._examined(is_deep=True))

    def remove(self, folder: Path) -> int:
        """Removes an entry, sound or not; returns the bytes that it took.

        Raises:
            CacheError: It is not in this cache, or cannot be removed.
        """
        if folder.parent != self._folder(folder.parent.name) or not KEY.fullmatch(folder.name):
            raise CacheError(f"{folder} is no entry of {self.root}", remedy="edgezoo cache list")
        size = disk.size_bytes(folder)
        gone = self._partial()
        with _telling(self.root):
            gone.parent.mkdir(exist_ok=True)
            try:
                folder.rename(gone)  # at once, so that nobody meets half of it
            except FileNotFoundError:  # another process was faster
                return 0
        disk.delete(gone)
        return size

    def clear(self, kind: Kind | None = None) -> int:
        """Removes all entries, or those of a kind; returns the bytes that they took.

        Raises:
            CacheError: An entry cannot be removed.
        """
        kinds = KINDS if kind is None else (kind,)
        freed = sum(self.remove(folder) for k in kinds for folder in self._folders(k))
        return freed + (self._sweep() if kind is None else 0)

    def _folder(self, kind: str) -> Path:
        if kind not in KINDS:
            raise CacheError(f"the cache has no {kind!r}", remedy=f"use {' or '.join(KINDS)}")
        return self.root / kind

    def _folders(self, *kinds: Kind) -> Iterator[Path]:
        for kind in kinds:
            yield from disk.children(self._folder(kind), KEY)

    def _partial(self) -> Path:
        return self.root / "partial" / f"{os.getpid()}-{secrets.token_hex(8)}"

    def _examined(self, *, is_deep: bool) -> Iterator[tuple[Entry | Path, str | None]]:
        for folder in self._folders(*KINDS):
            found, fault = examine(folder, is_deep=is_deep)
            if fault is None or os.path.lexists(folder):  # else it was removed meanwhile
                yield found, fault

    def _sound(self, folder: Path, parts: Mapping[str, Any] | None) -> Entry | None:
        """Returns the entry if it is whole and of these parts; for None, if its record is good."""
        found, fault = examine(folder, is_deep=parts is not None)
        if isinstance(found, Entry) and not fault:
            if parts is None or canonical(parts) == canonical(found.parts):
                return found
            fault = "it was made of other parts"
        if os.path.lexists(folder):
            logger.warning("cache: %s is damaged and not used: %s", folder, fault)
            with suppress(CacheError):
                self.remove(folder)
        return None

    def _begin(self) -> tuple[Path, int]:
        """Makes a folder to write into and locks it, so that a sweep sees that its maker lives."""
        while True:
            folder = self._partial()
            folder.mkdir(parents=True)
            with suppress(FileNotFoundError):  # swept before it was locked: once more
                descriptor = os.open(folder, os.O_RDONLY)
                with suppress(OSError):  # no locks here; see _sweep
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if folder.exists():
                    return folder, descriptor
                os.close(descriptor)

    def _publish(self, folder: Path, target: Path, parts: Mapping[str, Any]) -> Entry:
        target.parent.mkdir(exist_ok=True)
        for _ in range(3):
            try:
                folder.rename(target)
            except OSError as e:
                if e.errno not in _TAKEN:
                    raise
                # What is in the way is as good, or it is damaged and goes by being looked at.
                if theirs := self._sound(target, parts):
                    return theirs
            else:
                disk.sync(target.parent)
                break
        entry, _ = examine(target, is_deep=False)
        if isinstance(entry, Entry):
            return entry
        raise CacheError(f"{target} cannot be written", remedy=REMEDY)

    def _sweep(self) -> int:
        """Deletes what dead processes left or, where no lock can tell, what is a day old."""
        freed = 0
        for left in disk.children(self.root / "partial", _PARTIAL):
            with suppress(OSError):
                descriptor = os.open(left, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    if locks.is_abandoned(descriptor):
                        freed += disk.size_bytes(left)
                        disk.delete(left)
                finally:
                    os.close(descriptor)
        return freed

    def _evict(self, *, keep: Path) -> None:
        """Removes what was not used for longest until the entries take no more than the limit."""
        entries = [(_last_used(f), disk.size_bytes(f), f) for f in self._folders(*KINDS)]
        excess = sum(size for _, size, _ in entries) - self.limit_bytes
        for _, size, folder in sorted(entries):
            if excess <= 0:
                return
            if folder != keep:
                try:
                    self.remove(folder)
                except CacheError as e:
                    logger.warning("cache: %s", e)
                else:
                    logger.info("cache: evicted %s", folder)
                    excess -= size


def _last_used(folder: Path) -> float:
    with suppress(OSError):
        return (folder / RECORD).stat().st_mtime
    return 0.0  # damaged or gone


@contextmanager
def _telling(root: Path, faults: Collection[int] | None = None) -> Iterator[None]:
    """Says of these faults of the disk, or of any, that the cache cannot be written."""
    try:
        yield
    except OSError as e:
        if faults is not None and e.errno not in faults:
            raise
        message = f"the cache {root} cannot be written: {e.strerror or e}"
        raise CacheError(message, remedy=REMEDY) from e
