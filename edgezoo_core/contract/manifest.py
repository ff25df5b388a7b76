"""The manifest beside a converted model, or beside its bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgezoo_core import artifact


def beside(path: Path) -> Mapping[str, Any] | None:
    """Returns the manifest that speaks of a .tflite or .litertlm; None if there is none."""
    try:
        found = json.loads(artifact.manifest_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if path.name in _files(found) else None


def renew(path: Path, bundle: Mapping[str, Any]) -> None:
    """Says in the manifest beside a bundle, if there is one, what became of the bundle.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    found = beside(path)
    if found is not None and _name(found.get("bundle")) == path.name:
        artifact.write_manifest(path, {**found, "bundle": {**found["bundle"], **bundle}})


def _files(manifest: Any) -> set[str | None]:
    if not isinstance(manifest, dict) or manifest.get("schema") != artifact.SCHEMA:
        return set()
    return {_name(manifest.get(part)) for part in ("artifact", "bundle")}


def _name(part: Any) -> str | None:
    name = part.get("file") if isinstance(part, dict) else None
    return name if isinstance(name, str) else None
