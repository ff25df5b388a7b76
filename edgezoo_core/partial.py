"""What is in the making: temporary files and folders beside their destination, and whose it is.

Whoever makes something holds a lock on it, which the system frees however the process ends. So what
killed processes left is told from what living ones write, and goes when the next one begins.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgezoo_core import locks
from edgezoo_core.errors import DISK_FAULTS, ArtifactError, of_system


@contextmanager
def files(path: Path) -> Iterator[tuple[Path, Path]]:
    """Gives two temporary files beside `path`: one to become it (see `place`), one for scratch.

    Whatever happens, neither is left behind.

    Raises:
        ArtifactError: The folder cannot be written, or its disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        output, descriptor = _begin_file(path)
    except OSError as e:
        raise unwritable(path.parent, e) from e
    scratch = output.with_name(output.name.replace(".output.", ".float32."))
    try:
        with _telling(path):
            yield output, scratch
    finally:
        for left in (output, scratch):
            with suppress(OSError):
                left.unlink()
        os.close(descriptor)


def place(output: Path, path: Path) -> None:
    """Syncs a finished file and puts it at `path`; what stood there stays whole until then.

    Raises:
        ArtifactError: It cannot be put there; what stood there is untouched.
    """
    try:
        sync(output)
    except OSError as e:
        raise unwritable(path, e) from e
    rename(output, path)


def rename(output: Path, path: Path) -> None:
    """Puts a finished file that was synced at `path`, which takes no space.

    Raises:
        ArtifactError: It cannot be put there; what stood there is untouched.
    """
    try:
        output.replace(path)
    except OSError as e:
        raise unwritable(path, e) from e
    with suppress(OSError):  # some file systems cannot sync a folder
        sync(path.parent)


@contextmanager
def folder(parent: Path, name: str) -> Iterator[Path]:
    """Gives a temporary folder `.edgezoo-<name>-…` in `parent`, for what is too large for $TMPDIR.

    Raises:
        ArtifactError: `parent` cannot be written, or its disk is full.
    """
    try:
        sweep_folders(parent, name)
        made, descriptor = _begin_folder(parent, name)
    except OSError as e:
        raise unwritable(parent, e) from e
    try:
        with _telling(parent):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def reserved(path: Path) -> Iterator[None]:
    """Keeps other processes from writing an artifact, its bundle or its manifest meanwhile.

    Args:
        path: Any of the three; they differ in their suffix only.

    Raises:
        ArtifactError: Another process is at it, or the folder cannot be written.
    """
    lock = path.with_name(f".{path.stem}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(lock, path)
    except OSError as e:
        raise unwritable(path.parent, e) from e
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # while it is held: who opened it before sees that it is gone
        os.close(descriptor)


def unwritable(path: Path, cause: OSError) -> ArtifactError:
    """Returns the error for a place that cannot be written."""
    told = of_system(cause)
    return ArtifactError(
        f"{path} cannot be written: {cause.strerror or cause}",
        remedy=told.remedy if told else "choose another path",
    )


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in DISK_FAULTS:
            raise
        raise unwritable(path, e) from e


def _take(lock: Path, path: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        if locks.try_lock(descriptor) is False:
            holder = locks.holder(descriptor)
            os.close(descriptor)
            raise ArtifactError(
                f"{holder} is writing {path.stem} in {path.parent}",
                remedy="wait until it is done, or pass another --output",
            )
        if _is_at(descriptor, lock):
            locks.sign(descriptor)
            return descriptor
        os.close(descriptor)  # its holder removed it just now


def _begin_file(path: Path) -> tuple[Path, int]:
    while True:
        output = path.with_name(f".{path.name}.{secrets.token_hex(4)}.output.partial")
        descriptor = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if _is_held(descriptor, output):
            return output, descriptor


def _begin_folder(parent: Path, name: str) -> tuple[Path, int]:
    while True:
        made = Path(tempfile.mkdtemp(prefix=f".edgezoo-{name}-", dir=parent))
        with suppress(FileNotFoundError):
            descriptor = os.open(made, os.O_RDONLY)
            if _is_held(descriptor, made):
                return made, descriptor


def _is_held(descriptor: int, path: Path) -> bool:
    """Locks what was just made; closes it where a sweep of another process was faster."""
    if locks.try_lock(descriptor) is not False and _is_at(descriptor, path):
        return True
    os.close(descriptor)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def sweep(path: Path) -> None:
    """Removes the temporary files of a destination that nobody holds any more.

    Raises:
        OSError: The folder cannot be read.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.[\w.-]+\.(output|float32)\.partial")
    found = [left for left in path.parent.iterdir() if name.fullmatch(left.name)]
    # A scratch file goes with its output: nobody locks it.
    outputs = {left for left in found if left.name.endswith(".output.partial")}
    kept = {left for left in outputs if not _removed(left)}
    for left in found:
        sibling = left.with_name(left.name.replace(".float32.", ".output."))
        if left not in outputs and sibling not in kept:
            with suppress(OSError):
                left.unlink()


def _removed(left: Path) -> bool:
    """Removes a file that nobody holds any more; says whether it is gone."""
    with suppress(OSError):  # another user's
        descriptor = os.open(left, os.O_RDWR)
        try:
            if locks.is_abandoned(descriptor):
                left.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
    return not left.exists()


def sweep_folders(parent: Path, name: str) -> None:
    """Removes the folders that killed processes left: see `folder`."""
    for left in parent.glob(f".edgezoo-{name}-*"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if locks.is_abandoned(descriptor):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)
