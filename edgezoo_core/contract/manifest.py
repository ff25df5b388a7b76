"""The manifest beside a converted model, or beside its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgezoo_core import artifact, manifests, texts


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
    files = [found[part].get("file") for part in ("artifact", "bundle") if part in found]
    return found if path.name in files else None


def renew(path: Path, bundle: Mapping[str, Any]) -> None:
    """Says in the manifest beside a bundle, if there is one, what became of the bundle.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    found = beside(path)
    if found is not None and found.get("bundle", {}).get("file") == path.name:
        artifact.write_manifest(path, {**found, "bundle": {**found["bundle"], **bundle}})
