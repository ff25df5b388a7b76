"""The artifact store: files at an fsspec URL, and for each task a record that makes them count.

A task's files are put first, its record last: what has no record is not there, however much of it
is. A folder of this machine gets its files by renaming, an object store by one put each, so that
nobody reads half of one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from edgezoo_core import partial
from edgezoo_core.batch.tasks import Task
from edgezoo_core.checkpoint import sha256
from edgezoo_core.errors import BatchError

#: Version of the records' layout.
SCHEMA = 1

_RECORDS = "records"
#: What folders of tasks in the making are called (see `edgezoo_core.partial.folder`).
_MAKING = "batch"


class Store:
    """Files and records below a URL.

    Args:
        url: A folder, or what fsspec opens: `s3://bucket/zoo`, `gs://…`, `hf://…`, `sftp://…`.

    Raises:
        BatchError: There is no such protocol, or what it needs is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            location = url if "://" in url else str(Path(url).expanduser().absolute())
            self._files, self._root = fsspec.core.url_to_fs(location)
        except (ImportError, ValueError) as e:
            raise BatchError(
                f"{url} cannot be opened: {e}",
                remedy="name a folder or a URL of fsspec, and install what its protocol needs",
            ) from e
        self._root = self._root.rstrip("/")
        self.is_local = isinstance(self._files, LocalFileSystem)
        #: The folder that files are made in; it need not be there yet.
        self.disk = Path(self._root if self.is_local else tempfile.gettempdir())
        #: What opens the same store elsewhere.
        self.url = self._root if self.is_local else self._files.unstrip_protocol(self._root)

    def find(self, task: Task) -> Mapping[str, Any] | None:
        """Returns the record of a task that is done: same inputs, and its files are there.

        Of a folder on this machine every byte is read, elsewhere sizes are compared.
        """
        text = self._read(self._record(task.name))
        try:
            record: dict[str, Any] = json.loads(text or "null")
            done = record["asked"]
            is_same = record["schema"] == SCHEMA and record["digest"] == task.digest
            is_enough = done["bundle"] >= task.with_bundle and done["verify"] >= task.is_verified
            is_whole = is_same and is_enough and self._is_sound(record)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return record if is_whole else None

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Gives a folder to make files in, on the store's own disk if it has one here."""
        with self._telling():
            self.disk.mkdir(parents=True, exist_ok=True)
        with partial.folder(self.disk, _MAKING) as folder:
            yield folder

    def publish(self, task: Task, files: Mapping[str, Path], record: Mapping[str, Any]) -> Any:
        """Puts files into the store, beside one another, and then the record of them.

        Args:
            task: What they are of.
            files: What each is, and where it is now; it is moved or copied.
            record: What is said about them, beyond name, size and sha256.

        Returns:
            The whole record.

        Raises:
            BatchError: The store cannot be written.
        """
        described = {
            kind: {
                "name": self._beside(task, path),
                "size_bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
            for kind, path in files.items()
        }
        whole = {
            "schema": SCHEMA,
            "name": task.name,
            "digest": task.digest,
            "asked": {"bundle": task.with_bundle, "verify": task.is_verified},
            "files": described,
            **record,
            "inputs": task.inputs,
        }
        with self._telling():
            # What stood there is none of the new files'.
            self._remove(self._record(task.name))
            for path in files.values():
                self._put(path, self._beside(task, path))
        self.write(self._record(task.name), json.dumps(whole, indent=2) + "\n")
        return whole

    def write(self, name: str, text: str) -> None:
        """Puts a text.

        Raises:
            BatchError: The store cannot be written.
        """
        with self._telling():
            if not self.is_local:
                self._files.pipe_file(self._path(name), text.encode())
                return
            with self.scratch() as folder:
                (folder / "text").write_text(text, encoding="utf-8")
                self._put(folder / "text", name)

    def sweep(self) -> None:
        """Removes what processes of this machine left here that were killed."""
        partial.sweep_folders(self.disk, _MAKING)

    def has_files(self, record: Mapping[str, Any]) -> bool:
        """Says whether a record's files are there with their sizes.

        Raises:
            BatchError: The store cannot be read.
        """
        return all(self._size(f["name"]) == f["size_bytes"] for f in record["files"].values())

    def _is_sound(self, record: Mapping[str, Any]) -> bool:
        if not self.has_files(record):
            return False
        files = record["files"].values()
        return not self.is_local or all(
            sha256(Path(self._path(f["name"]))) == f["sha256"] for f in files
        )

    def _size(self, name: str) -> Any:
        with self._telling():
            try:
                return self._files.info(self._path(name))["size"]
            except FileNotFoundError:
                return None

    def _put(self, path: Path, name: str) -> None:
        target = self._path(name)
        if self.is_local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        else:
            self._files.put_file(str(path), target)

    def _read(self, name: str) -> str | None:
        with self._telling():
            try:
                content: bytes = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None
        return content.decode(errors="replace")

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def _beside(self, task: Task, path: Path) -> str:
        return str(PurePosixPath(task.name).with_name(path.name))

    def _record(self, name: str) -> str:
        return f"{_RECORDS}/{name}.json"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Says of whatever a file system raises that the store cannot be used."""
        try:
            yield
        except BatchError:
            raise
        except Exception as e:
            raise BatchError(
                f"the store {self.url} cannot be used: {type(e).__name__}: {e}",
                remedy="check the address, who may write there, and the space that is left",
            ) from e
