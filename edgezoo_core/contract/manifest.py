"""The manifest beside a converted model, or beside its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgezoo_core import artifact, manifests, partial, texts


def beside(path: Path) -> Mapping[str, Any] | None:
    """Returns the manifest that speaks of a .tflite or .litertlm; None if there is none."""
    try:
        found = texts.read_json(artifact.manifest_path(path), texts.MANIFEST_BYTES)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("schema") != artifact.SCHEMA:
        return None
    if any(manifests.faults(found)):
        return None
    parts = [
        part for part in ("artifact", "bundle") if found.get(part, {}).get("file") == path.name
    ]
    if not parts:
        return None
    if artifact.IN_DOUBT in found and not _is_of(found, found[parts[0]], path):
        return None
    return found


def publish(output: Path, path: Path, bundle: Mapping[str, Any]) -> None:
    """Puts a mended bundle in its place, and what became of it in its manifest, if there is one.

    Args:
        output: The finished temporary file.
        path: The bundle.
        bundle: What of the manifest's words about it is new.

    Raises:
        ArtifactError: Something cannot be written; then all is as it was.
    """
    found = beside(path)
    if found is None or found.get("bundle", {}).get("file") != path.name:
        partial.place(output, path.resolve())
        return
    renewed = {**found, "bundle": {**found["bundle"], **bundle}}
    artifact.publish(output, path.resolve(), renewed, beside=path)


def _is_of(manifest: Mapping[str, Any], record: Mapping[str, Any], path: Path) -> bool:
    try:
        return artifact.is_of(manifest, record, path)
    except OSError:
        return False
