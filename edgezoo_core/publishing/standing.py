"""Whether an artifact carries a certificate that stands: of this very file, whole, and passing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core.artifact import BUNDLE_SUFFIX
from edgezoo_core.checkpoint import sha256
from edgezoo_core.errors import PublishError

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Standing:
    """What a certificate counts for.

    Attributes:
        fault: Why it counts for nothing; empty if it stands.
        record: The certificate, None if there is none that speaks of the file.
    """

    fault: str
    record: Mapping[str, Any] | None


def model_sha256(path: Path) -> str:
    """Returns the sha256 of a .tflite, or of the language model in a .litertlm.

    Raises:
        ArtifactError: It is no bundle.
        PublishError: The bundle holds no language model, or several.
    """
    if path.suffix != BUNDLE_SUFFIX:
        return sha256(path)
    from edgezoo_core.bundle import sections

    found = sections.open_bundle(path).models()
    if len(found) != 1:
        raise PublishError(
            f"{path} holds {len(found)} language models, expected one",
            remedy="make it anew with `edgezoo bundle`",
        )
    digest, left = hashlib.sha256(), found[0].size_bytes
    with path.open("rb") as file:
        file.seek(found[0].begin)
        while left:
            piece = file.read(min(_CHUNK_BYTES, left))
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def judge(manifest: Mapping[str, Any], digest: str) -> Standing:
    """Says what a manifest's certificate counts for.

    It is judged by its figures and by edgezoo's own bounds, not by what it says of itself: a bound
    may have been loosened when it was made.

    Args:
        manifest: With the record of `edgezoo verify`.
        digest: sha256 of the model as it is now.
    """
    found = manifest.get("verification")
    if found is None:
        return Standing("it was never verified", None)
    try:
        if found.get("sha256") != digest:
            return Standing("its certificate does not speak of this file", None)
        return Standing(_failure(found, manifest["recipe"]["weights"].values()), found)
    except (AttributeError, KeyError, TypeError, ValueError):
        return Standing("its certificate is damaged", None)


def _failure(found: Mapping[str, Any], formats: Any) -> str:
    from edgezoo_core.verification.report import MAX_STRUCTURE, bound

    structure, weights, outputs = (found[n] for n in ("structure", "weights", "outputs"))
    if structure is None:
        return "its graph was not examined (--no-structure)"
    difference = float(structure["relative_difference"])
    if not difference <= MAX_STRUCTURE or structure["diverges"]:
        return f"its graph differs by {difference:.1e} of the norm (allowed {MAX_STRUCTURE:.0e})"
    if weights["bad"] or not float(weights["largest"]) <= 1:
        return "some of its weights are not what their format makes of the source's"
    loss, allowed = float(outputs["loss"]["mean_kl"]), bound(list(formats))
    if not loss <= allowed:
        return f"its mean KL is {loss:.2e} nats (allowed {allowed:.3g})"
    return "" if found["passes"] is True else "it does not pass"
