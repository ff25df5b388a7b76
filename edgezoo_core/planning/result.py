"""What a plan says: sizes, costs, and what is in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgezoo_core.errors import ConversionError, EdgezooError
from edgezoo_core.shapes import SignatureOptions

Level = Literal["error", "warning", "note"]
#: Where the figures come from, most exact first.
Basis = Literal["skeleton", "trace", "module", "headers"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a conversion will meet.

    Attributes:
        level: `error` where it cannot succeed.
        subject: What it is about: access, family, config, recipe, tensors, shapes, adapters,
            output, disk, memory, download.
        message: What was found, against what is needed.
        remedy: The command to run or the decision to take; empty for a note.
        kind: What a conversion raises.
    """

    level: Level
    subject: str
    message: str
    remedy: str = ""
    kind: type[EdgezooError] = ConversionError

    def to_json(self) -> dict[str, str]:
        """Returns it as plain values."""
        return {
            "level": self.level,
            "subject": self.subject,
            "message": self.message,
            "remedy": self.remedy,
        }


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system that a conversion writes to.

    Attributes:
        path: A folder on it, the first that is written.
        holds: What goes there: download, output, cache.
        needed_bytes: What all of it takes.
        free_bytes: What is free now.
    """

    path: str
    holds: tuple[str, ...]
    needed_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion takes and gives; None stands for what cannot be known.

    Attributes:
        target: What the user named.
        source: `org/name@commit`, or the folder.
        family: The family that converts it.
        plugin: Its distribution and version.
        commit: The hub's commit, None for a folder.
        license: Of the weights; `unknown` where nobody says.
        is_gated: Whether the hub asks to accept the licence first.
        recipe: Name of the recipe.
        engine: `streaming` or `litert`.
        options: The signatures' static shapes.
        context_length: Longest sequence that the model was made for, in tokens.
        parameters: Numbers in the model, tied ones counted once.
        download_bytes: What is not here yet.
        artifact_bytes: The .tflite.
        bundle_bytes: The .litertlm; 0 where none is made.
        kv_cache_bytes: Slots -> bytes of keys and values, float32.
        peak_memory_bytes: Largest resident size of all processes together.
        memory_bytes: The same, by stage.
        seconds: Wall time on this machine, without the download.
        stage_seconds: The same, by stage.
        download_seconds: At `edgezoo_core.planning.costs.DOWNLOAD_RATE`.
        available_memory_bytes: What is free for us now; None where the system does not say.
        disks: Where files go, file systems apart.
        missing: A line for each tensor that the family needs and the checkpoint lacks.
        unexpected: For each that no parameter takes.
        misshapen: For each of another shape than expected.
        basis: `skeleton` or `trace` out of the cache, the `module` itself, or the `headers` alone.
        findings: What it will meet, errors first.
    """

    target: str
    source: str
    family: str | None
    plugin: str | None
    commit: str | None
    license: str
    is_gated: bool
    recipe: str
    engine: str
    options: SignatureOptions | None = None
    context_length: int | None = None
    parameters: int | None = None
    download_bytes: int = 0
    artifact_bytes: int | None = None
    bundle_bytes: int | None = None
    kv_cache_bytes: Mapping[int, int] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    download_seconds: float = 0.0
    available_memory_bytes: int | None = None
    disks: tuple[Disk, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    basis: Basis | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What a conversion cannot get over."""
        return tuple(f for f in self.findings if f.level == "error")

    @property
    def fits(self) -> bool:
        """Whether nothing is in the way."""
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            "fits": self.fits,
            **plain,
            "options": asdict(self.options) if self.options else None,
            "kv_cache_bytes": {str(n): size for n, size in self.kv_cache_bytes.items()},
            "disks": [asdict(d) for d in self.disks],
            "findings": [f.to_json() for f in self.findings],
        }


def refuse(plan: Plan) -> None:
    """Stops a conversion that cannot succeed.

    Raises:
        EdgezooError: The plan has errors; all of them are named. Of a single one, its own kind.
    """
    if plan.fits:
        return
    if len(plan.errors) == 1:
        only = plan.errors[0]
        raise only.kind(only.message, remedy=only.remedy)
    messages = "".join(f"\n  {f.subject}: {f.message}" for f in plan.errors)
    remedies = "".join(f"\n  {f.subject}: {f.remedy}" for f in plan.errors)
    raise ConversionError(f"{plan.source} cannot be converted:{messages}", remedy=remedies)
