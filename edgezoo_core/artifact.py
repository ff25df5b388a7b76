"""What leaves the house: the file, its name, and the manifest beside it; written atomically."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core import manifests, texts
from edgezoo_core.errors import DISK_FAULTS, ArtifactError, listing

_HOST = platform.node() or "host"

#: Version of the manifest's layout.
SCHEMA = 1
BUNDLE_SUFFIX = ".litertlm"


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
    is left behind, and what stood at `path` before stays whole until it is replaced.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        partial, scratch = (
            path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.{kind}.partial")
            for kind in ("output", "float32")
        )
        partial.touch()
    except OSError as e:
        raise ArtifactError(
            f"{path.parent} cannot be written: {e.strerror or e}", remedy="pass another --output"
        ) from e
    try:
        try:
            yield partial, scratch
        except OSError as e:
            if e.errno not in DISK_FAULTS:
                raise
            raise _unwritable(path, e) from e
        try:
            _sync(partial)
            partial.replace(path)
        except OSError as e:
            raise _unwritable(path, e) from e
    finally:
        for left in (partial, scratch):
            with suppress(OSError):
                left.unlink()


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> Artifact:
    """Writes an artifact's manifest beside it.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    with writing(manifest_path(path)) as (partial, _):
        partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
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
    size, actual = record["size_bytes"], path.stat().st_size
    if size != actual:
        raise ArtifactError(
            f"{path} has {actual} bytes, its manifest says {size}",
            remedy="one of the two was replaced: convert the model again",
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


def _no_manifest(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is no manifest: {why}",
        remedy="name a .manifest.json that edgezoo wrote, or convert the model again",
    )


def _sweep(path: Path) -> None:
    """Removes what processes of this machine left behind that were killed while they wrote."""
    name = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(_HOST)}\.(\d+)\.\w+\.partial")
    for left in path.parent.iterdir():
        match = name.fullmatch(left.name)
        if match and not _is_alive(int(match[1])):
            with suppress(OSError):
                left.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def _unwritable(path: Path, cause: OSError) -> ArtifactError:
    return ArtifactError(
        f"{path} cannot be written: {cause.strerror or cause}",
        remedy="free some space, or pass another --output",
    )


def _sync(path: Path) -> None:
    with path.open("rb") as f:
        os.fsync(f.fileno())
