"""The manifest beside a converted model, or beside its bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgezoo_core import artifact, partial


def beside(path: Path) -> Mapping[str, Any] | None:
    """Returns the manifest that speaks of a .tflite or .litertlm; None if there is none."""
    try:
        found = json.loads(artifact.manifest_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if path.name not in _files(found):
        return None
    return None if artifact.IN_DOUBT in found and not _is_of(found, path) else found


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
    if found is None or _name(found.get("bundle")) != path.name:
        partial.place(output, path.resolve())
        return
    renewed = {**found, "bundle": {**found["bundle"], **bundle}}
    artifact.publish(output, path.resolve(), renewed, beside=path)


def _is_of(manifest: Mapping[str, Any], path: Path) -> bool:
    part = "bundle" if _name(manifest.get("bundle")) == path.name else "artifact"
    try:
        return artifact.is_of(manifest, manifest[part], path)
    except (OSError, LookupError):
        return False


def _files(manifest: Any) -> set[str | None]:
    if not isinstance(manifest, dict) or manifest.get("schema") != artifact.SCHEMA:
        return set()
    return {_name(manifest.get(part)) for part in ("artifact", "bundle")}


def _name(part: Any) -> str | None:
    name = part.get("file") if isinstance(part, dict) else None
    return name if isinstance(name, str) else None
