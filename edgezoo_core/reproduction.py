"""The proof that an artifact can be made again: the order of a reproduction."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgezoo_core import artifact, manifests, partial, provenance, zoo
from edgezoo_core.artifact import Artifact
from edgezoo_core.calibrating import passage
from edgezoo_core.errors import CalibrationError
from edgezoo_core.types import Progress, silent

logger = logging.getLogger(__name__)

#: What of a manifest is not made by the conversion itself, or tells the time.
_APART = ("created", "promise", "verification", artifact.IN_DOUBT)


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came out of converting again.

    Attributes:
        same: File -> whether it came out the same: `artifact`, `bundle` if there was one,
            `manifest` (its time stamp, promise and verification apart).
        sha256: `artifact` and `bundle` -> sha256 as recorded, and as it came out.
        versions: Distribution -> version as recorded, and as it is installed, None where it is
            not; only those that differ.
    """

    same: Mapping[str, bool]
    sha256: Mapping[str, tuple[str, str]]
    versions: Mapping[str, tuple[str, str | None]]

    @property
    def passes(self) -> bool:
        """Whether everything came out the same."""
        return all(self.same.values())


def reproduce(
    manifest: Path, progress: Progress = silent, calibration: Path | None = None
) -> Reproduction:
    """Converts again what a manifest describes, beside it, and compares; nothing of it is kept.

    A set of versions that is not the recorded one is told before any work.

    Args:
        manifest: The manifest; the artifact itself need not be there.
        progress: Told of each stage.
        calibration: The text that a compensated artifact was calibrated on, if not the carried one.

    Raises:
        ArtifactError: It is no manifest.
        CalibrationError: The text is another one than then.
        VerificationError: The source is not what it was.
        EdgezooError: The source cannot be had or converted.
    """
    recorded = artifact.read_manifest(manifest)
    manifests.require(recorded, manifest, "versions", "engine", "artifact")
    _check_text(recorded, calibration)
    versions = changed_versions(recorded["versions"])
    for name, (then, now) in versions.items():
        logger.warning("%s was %s, and is %s now", name, then, now or "not installed")
    made = provenance.trace(Artifact(manifest, recorded), progress)
    name = recorded["artifact"]["file"]
    with partial.folder(manifest.resolve().parent, "reproduce") as folder:
        again = zoo.convert_source(
            made.source,
            recipe=made.recipe,
            shapes=made.shapes,
            output=folder / name,
            adapters=made.adapters,
            engine=recorded["engine"],
            with_bundle="bundle" in recorded,
            calibration=calibration,
            progress=progress,
        ).artifact.manifest
    return _compared(recorded, again or {}, versions)


def _check_text(recorded: Mapping[str, Any], calibration: Path | None) -> None:
    then = recorded.get("recipe", {}).get("compensated", {}).get("text_sha256")
    if then is None:
        return
    now = passage.digest(passage.read(calibration))
    if now != then:
        named = calibration or "the carried text"
        raise CalibrationError(
            f"it was calibrated on a text with sha256 {then}, and {named} has {now}",
            remedy="name that text with --calibration FILE",
        )


def changed_versions(recorded: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """Returns the distributions whose versions are not the recorded ones: then, and now."""
    now = {name: _version(name) for name in recorded}
    return {name: (recorded[name], now[name]) for name in recorded if now[name] != recorded[name]}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _compared(
    recorded: Mapping[str, Any],
    again: Mapping[str, Any],
    versions: Mapping[str, tuple[str, str | None]],
) -> Reproduction:
    files = [name for name in ("artifact", "bundle") if name in recorded]
    sums = {name: (recorded[name]["sha256"], again[name]["sha256"]) for name in files}
    same = {name: then == now for name, (then, now) in sums.items()}
    same["manifest"] = _body(recorded) == _body(again)
    return Reproduction(same, sums, versions)


def _body(manifest: Mapping[str, Any]) -> dict[str, Any]:
    # Where a folder stood is no part of what was made.
    found = artifact.portable(manifest)
    return {name: value for name, value in found.items() if name not in _APART}
