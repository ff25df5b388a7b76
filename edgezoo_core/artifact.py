"""What leaves the house: the file, its name, and the manifest beside it; written atomically."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core.errors import DISK_FAULTS, ArtifactError

_HOST = platform.node() or "host"

#: Version of the manifest's layout.
SCHEMA = 1
BUNDLE_SUFFIX = ".litertlm"

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
        manifest: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        int(manifest["artifact"]["size_bytes"])
        schema = manifest["schema"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise ArtifactError(
            f"{path} is no manifest: {type(e).__name__}: {e}",
            remedy="name a .manifest.json that edgezoo wrote, or convert the model again",
        ) from e
    if schema != SCHEMA:
        raise ArtifactError(
            f"{path} has schema {schema}, expected {SCHEMA}",
            remedy="upgrade edgezoo-core, or convert the model again",
        )
    return manifest


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
