"""What leaves the house: the file, its name, and the manifest beside it; written atomically."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core import checkpoint, manifests, partial, paths, texts
from edgezoo_core.errors import ArtifactError, listing, plain

#: Version of the manifest's layout.
SCHEMA = 1
BUNDLE_SUFFIX = ".litertlm"
#: Field of a manifest whose file may have been replaced since: see `publish`.
IN_DOUBT = "in_doubt"

#: What came from the hub: a repo at a commit.
_PINNED = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A converted model: the .tflite or its bundle, and their manifest if there is one."""

    path: Path
    manifest: Mapping[str, Any] | None


def file_name(model: str, recipe: str, kv_cache_length: int) -> str:
    """Returns `<model>_<recipe>_ekv<S>.tflite`."""
    return f"{model}_{recipe}_ekv{kv_cache_length}.tflite"


def manifest_path(path: Path) -> Path:
    """Returns where an artifact's manifest stands."""
    return path.with_suffix(".manifest.json")


def refuse_odd(path: Path) -> None:
    """Checks, before any work, that an output can be a file.

    Raises:
        ArtifactError: A folder or a device has its name, or a file the name of its folder.
    """
    if not paths.is_inner(path.name):
        raise ArtifactError(
            f"{plain(path.name)!r} is no name that every system takes and a manifest can hold",
            remedy='pass a shorter --output without control characters and \\ : * ? " < > |',
        )
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is no regular file", remedy="pass another --output")
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        raise ArtifactError(f"{above} is no folder", remedy="pass another --output")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ArtifactError(f"{above} cannot be written", remedy="pass another --output")


def refuse_existing(path: Path) -> None:
    """Checks, before any work, that an output is free.

    Raises:
        ArtifactError: The artifact or its manifest is there already.
    """
    for existing in (path, manifest_path(path)):
        if existing.exists():
            raise ArtifactError(
                f"{existing} exists", remedy="pass --force to replace it, or another --output"
            )


@contextmanager
def writing(path: Path) -> Iterator[tuple[Path, Path]]:
    """Gives two temporary files beside `path`: one to become it, one for scratch.

    When the block ends well, the first is synced and renamed to `path`. Whatever happens, neither
    is left behind, and what stood at `path` before stays whole until it is replaced. A link is
    followed.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    path = path.resolve()
    with partial.files(path) as (output, scratch):
        yield output, scratch
        partial.place(output, path)


def publish(
    output: Path, path: Path, manifest: Mapping[str, Any], *, beside: Path | None = None
) -> Artifact:
    """Puts a finished temporary file at `path`, and the manifest that speaks of it in its place.

    All that may run out of space is done before anything is replaced. Of two files the names
    cannot change at once: in between, the manifest that was there says that it is in doubt, and a
    reader compares every byte before it believes it.

    Args:
        output: The file, made by `partial.files`.
        path: Where it goes; what stands there is replaced.
        manifest: What is to be said of it.
        beside: The file that the manifest stands beside, if that is another.

    Raises:
        ArtifactError: Something cannot be written; then what stood there before is whole.
    """
    where = manifest_path(beside or path).resolve()
    with partial.files(where) as (record, _):
        _write_json(record, manifest)
        partial.sync(record)
        partial.sync(output)
        with _doubted(where):
            partial.rename(output, path)
        partial.rename(record, where)
    return Artifact(beside or path, manifest)


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> Artifact:
    """Writes an artifact's manifest beside it.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    with writing(manifest_path(path)) as (record, _):
        _write_json(record, manifest)
    return Artifact(path, manifest)


def read(path: Path) -> Artifact:
    """Opens an artifact and the manifest beside it.

    Raises:
        ArtifactError: There is no such file, or the manifest is not this file's.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", remedy="check the path")
    beside = manifest_path(path)
    if not beside.is_file():
        return Artifact(path, None)
    manifest = read_manifest(beside)
    record = manifest.get("bundle") if path.suffix == BUNDLE_SUFFIX else manifest["artifact"]
    if record is None:
        return Artifact(path, None)
    if not is_of(manifest, record, path):
        size, actual = record["size_bytes"], path.stat().st_size
        raise ArtifactError(
            f"{path} has {actual} bytes, its manifest says {size}"
            if actual != size
            else f"{path} is another file than its manifest describes",
            remedy="one of the two was replaced: convert or bundle it again, with --force",
        )
    return Artifact(path, manifest)


def read_manifest(path: Path) -> Mapping[str, Any]:
    """Reads a manifest.

    Raises:
        ArtifactError: It is none, or of another version.
    """
    try:
        manifest = texts.read_json(path, texts.MANIFEST_BYTES)
    except (OSError, ValueError) as e:
        raise _no_manifest(path, str(e)) from e
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is not int:
        raise _no_manifest(path, "it has no schema")
    if schema != SCHEMA:
        raise ArtifactError(
            f"{path} has schema {schema}, expected {SCHEMA}",
            remedy="upgrade edgezoo-core, or convert the model again",
        )
    if found := list(manifests.faults(manifest)):
        raise _no_manifest(path, listing(found))
    return dict(manifest)


def portable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a manifest that says nothing of the machine it was written on.

    Of a path that leads to a source, an adapter or a text, the last name stays: `./NAME`. For
    `edgezoo reproduce` that is a folder beside which it is run.
    """
    source = manifest["checkpoint"]["folder"]
    adapters = manifest.get("adapters", ())
    paths = {p for p in (source, *(a["source"] for a in adapters)) if p and Path(p).is_absolute()}
    found: dict[str, Any] = _without(sorted(paths, key=len, reverse=True), manifest)
    if source:
        found["checkpoint"]["folder"] = _named(source)
    for record in found.get("adapters", ()):
        if not _PINNED.fullmatch(record["source"]):
            record["source"] = _named(record["source"])
    if "text" in (found.get("verification") or {}):
        # What is no path, such as `the carried sample`, has no slash.
        found["verification"]["text"] = Path(found["verification"]["text"]).name
    return found


def _without(paths: Sequence[str], value: Any) -> Any:
    """Returns a copy of a JSON value, the paths in its texts replaced by their last names."""
    if isinstance(value, str):
        for path in paths:
            value = value.replace(path, _named(path))
        return value
    if isinstance(value, Mapping):
        return {key: _without(paths, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without(paths, inner) for inner in value]
    return value


def _named(path: str) -> str:
    return f"./{Path(path).name}"


def _no_manifest(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is no manifest: {why}",
        remedy="name a .manifest.json that edgezoo wrote, or convert the model again",
    )


def is_of(manifest: Mapping[str, Any], record: Mapping[str, Any], path: Path) -> bool:
    """Says whether a manifest speaks of a file as it is.

    By its size and, where a process died while it replaced one of the two, by every byte.

    Args:
        manifest: The whole manifest.
        record: Its part about this file: `artifact` or `bundle`.
        path: The file.
    """
    if record["size_bytes"] != path.stat().st_size:
        return False
    return IN_DOUBT not in manifest or record.get("sha256") == checkpoint.sha256(path)


@contextmanager
def _doubted(where: Path) -> Iterator[None]:
    """Marks the manifest at a place, if there is one, while the file that it describes changes."""
    try:
        before = where.read_text(encoding="utf-8")
        manifest = json.loads(before)
    except (OSError, ValueError, RecursionError):  # nobody believes it
        manifest = None
    if not isinstance(manifest, dict):
        yield
        return
    with writing(where) as (marked, _):
        _write_json(marked, {**manifest, IN_DOUBT: True})
    try:
        yield
    except ArtifactError:  # nothing was replaced
        with suppress(ArtifactError), writing(where) as (again, _):
            again.write_text(before, encoding="utf-8")
        raise


def _write_json(path: Path, manifest: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
