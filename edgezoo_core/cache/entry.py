"""One entry on the disk: its record, its key, and whether it can be believed."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from edgezoo_core import texts
from edgezoo_core.cache import disk
from edgezoo_core.errors import CacheError, listing

Kind = Literal["trace", "skeleton", "calibration"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Version of an entry's layout.
SCHEMA = 1
#: The file that describes an entry; its mtime says when the entry was last used.
RECORD = "entry.json"
#: What an entry's folder is called.
KEY = re.compile(r"[0-9a-f]{64}")
#: Seconds since the epoch that every calendar still knows; the year is 5138.
LAST_TIME = 10**11
_FILE = re.compile(r"(?!entry\.json$)\w[\w.-]*", re.ASCII)

# What reading a record of any content may raise.
_BAD_RECORD = (
    AttributeError,
    CacheError,
    LookupError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What a file of an entry must be."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Something kept. Times are seconds since the epoch; `parts` and `about` are JSON values."""

    kind: Kind
    key: str
    folder: Path
    parts: Mapping[str, Any]
    about: Mapping[str, Any]
    files: Mapping[str, StoredFile]
    size_bytes: int
    created: float
    last_used: float

    def path(self, name: str) -> Path:
        """Returns where a file of the entry stands.

        Raises:
            CacheError: The entry has no such file.
        """
        if name not in self.files:
            raise CacheError(f"{self.folder} has no file {name!r}", remedy="pass --no-cache")
        return self.folder / name


@dataclass(slots=True)
class Adding:
    """An entry in the making: plain files in `folder`, words in `about`; at the end, `entry`."""

    folder: Path
    parts: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    entry: Entry = field(init=False, repr=False, compare=False)


def canonical(value: Mapping[str, Any]) -> bytes:
    """Returns the one JSON text of a value: equal texts are equal values, types included.

    Raises:
        CacheError: The value holds something that JSON does not have, NaN and infinity included.
    """
    try:
        if not isinstance(value, Mapping):
            raise TypeError(f"a mapping at the top, not {type(value).__name__}")
        text = json.dumps(dict(value), sort_keys=True, allow_nan=False, separators=(",", ":"))
        # json would turn the key 1 into "1", and two values into one.
        if strange := [repr(key) for key in _keys(value) if not isinstance(key, str)]:
            raise TypeError(f"keys that are no strings: {listing(strange)}")
    except (TypeError, ValueError, RecursionError) as e:
        raise CacheError(f"the cache takes JSON values only: {e}", remedy="pass --no-cache") from e
    return text.encode("ascii")


def digest(parts: Mapping[str, Any]) -> str:
    """Returns the key of what `parts` shape: the SHA-256 of their canonical JSON, in hex.

    Raises:
        CacheError: The parts hold something that JSON does not have, NaN and infinity included.
    """
    return hashlib.sha256(canonical(parts)).hexdigest()


def write_record(adding: Adding, kind: Kind, parts: Mapping[str, Any]) -> None:
    """Syncs the files of a new entry, then describes them in its record.

    Raises:
        CacheError: The folder holds more than plain files, or `about` is no JSON.
        OSError: The folder cannot be written.
    """
    files = {}
    for path in sorted(adding.folder.iterdir()):
        if not (disk.is_plain(path) and _FILE.fullmatch(path.name)):
            raise CacheError(
                f"an entry consists of plain files, {path.name!r} is none", remedy="pass --no-cache"
            )
        disk.sync(path)
        files[path.name] = StoredFile(path.stat().st_size, disk.sha256(path))
    record = {
        "schema": SCHEMA,
        "kind": kind,
        "key": digest(parts),
        "created": time.time(),
        "parts": dict(parts),
        "about": dict(adding.about),
        "files": {name: asdict(file) for name, file in files.items()},
    }
    (adding.folder / RECORD).write_bytes(canonical(record))
    disk.sync(adding.folder / RECORD)
    disk.sync(adding.folder)


def examine(folder: Path, *, is_deep: bool) -> tuple[Entry | Path, str | None]:
    """Reads an entry and compares its files with its record, their content too if `is_deep`.

    Returns:
        The entry, or its folder if there is no record to believe; and the fault, if there is one.
    """
    found: Entry | Path = folder
    try:
        found = entry = _read_record(folder)
        present = {path.name for path in folder.iterdir()} - {RECORD}
        if odd := present ^ set(entry.files):
            raise ValueError(f"missing or foreign: {listing(sorted(odd))}")
        for name, file in entry.files.items():
            path = folder / name
            if not disk.is_plain(path):
                raise ValueError(f"{name} is no plain file")
            size = path.stat().st_size
            if size != file.size_bytes:
                raise ValueError(f"{name} has {size} bytes, expected {file.size_bytes}")
            if is_deep and disk.sha256(path) != file.sha256:
                raise ValueError(f"{name} is not what was written")
    except _BAD_RECORD as e:
        return found, str(e) if isinstance(found, Entry) else f"no valid {RECORD}: {e!r}"
    return found, None


def _read_record(folder: Path) -> Entry:
    """Reads a record that says what the folder's place says; raises one of `_BAD_RECORD`."""
    path = folder / RECORD
    if folder.is_symlink() or not disk.is_plain(path):
        raise ValueError("a link, or no plain file")
    record = texts.read_json(path, texts.MANIFEST_BYTES)
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema {record['schema']!r}, expected {SCHEMA}")
    kind = next(kind for kind in KINDS if kind == folder.parent.name)
    if (record["kind"], record["key"]) != (kind, folder.name):
        raise ValueError("it describes another entry")
    if digest(record["parts"]) != folder.name:
        raise ValueError("its parts were changed")
    files = {n: StoredFile(int(f["size_bytes"]), f["sha256"]) for n, f in record["files"].items()}
    if not all(map(_FILE.fullmatch, files)):
        raise ValueError("a file's name is none")
    created = float(record["created"])
    if not 0 <= created < LAST_TIME:
        raise ValueError(f"{created} is no time")
    return Entry(
        kind=kind,
        key=folder.name,
        folder=folder,
        parts=record["parts"],
        about=dict(record["about"]),
        files=files,
        size_bytes=sum(file.size_bytes for file in files.values()),
        created=created,
        last_used=path.stat().st_mtime,
    )


def _keys(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _keys(each)
