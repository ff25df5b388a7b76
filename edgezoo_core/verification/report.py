"""What a verification found, and whether it will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgezoo_core.texts import finite
from edgezoo_core.verification.measures import LayerDifference, Loss
from edgezoo_core.verification.weights import COMPENSATED_BOUND, MatrixError

#: Largest mean KL in nats that a file may lose, by the coarsest format in it. Two to three times
#: what sound models lose; a model that its format ruins loses far more.
MAX_KL: Mapping[str, float] = {
    "none": 1e-6,
    "fp16": 1e-4,
    "weight_only_int8": 0.02,
    "dynamic_int8": 0.06,
    "int4": 0.25,
}
#: Largest difference between the float32 graph and the reference, as a share of the norm. Sums in
#: another order give about 2e-6.
MAX_STRUCTURE = 2e-5


@dataclass(frozen=True, slots=True)
class Structure:
    """The same graph without quantization, in float32, against the reference.

    Attributes:
        relative_difference: Of the logits: norm of the difference over the norm.
        bound: Largest that passes.
        diverges: Where the first difference beyond the bound shows, empty if nowhere.
    """

    relative_difference: float
    bound: float
    diverges: str

    @property
    def passes(self) -> bool:
        """Whether the graph computes what the reference does."""
        return self.relative_difference <= self.bound and not self.diverges


@dataclass(frozen=True, slots=True)
class Weights:
    """Every stored row against its source.

    Attributes:
        matrices: Matrices and vectors that were read.
        largest: Largest error, as a share of what passes: half a step of the format, or what
            `weights.COMPENSATED_BOUND` says.
        worst: Parameter and row of it.
        bad: Those beyond what passes: parameter, row, error.
        is_compensated: Whether there are weights whose errors make up for each other.
    """

    matrices: int
    largest: float
    worst: str
    bad: tuple[str, ...]
    is_compensated: bool

    @property
    def passes(self) -> bool:
        """Whether every row is as near to its source as its format allows."""
        return not self.bad


@dataclass(frozen=True, slots=True)
class Outputs:
    """The shipped file's own outputs against the reference.

    Attributes:
        loss: See `Loss`.
        max_kl: Largest mean KL that passes, in nats.
        same_tokens: For each fixed prompt, greedy tokens that both choose before they part, and
            how many were compared.
        farthest_layer: The layer whose cache is farthest from the reference's.
    """

    loss: Loss
    max_kl: float
    same_tokens: tuple[tuple[int, int], ...]
    farthest_layer: LayerDifference

    @property
    def passes(self) -> bool:
        """Whether the file says nearly what the reference says."""
        return self.loss.mean_kl <= self.max_kl


@dataclass(frozen=True, slots=True)
class Report:
    """The certificate of one artifact.

    Attributes:
        reference: `transformers` or `authored`.
        runtime: What ran the file.
        text: What was read.
        tokens: Tokens of it.
        structure: None where it was not asked for.
        weights: Every row.
        outputs: The file itself.
        memory_bytes: The most that `subject`, `reference` and `structure` (the float32 graph) held:
            `resident`, mapped files included, and `private`, which the system cannot drop.
    """

    reference: str
    runtime: str
    text: str
    tokens: int
    structure: Structure | None
    weights: Weights
    outputs: Outputs
    memory_bytes: Mapping[str, Mapping[str, int | None]]

    @property
    def passes(self) -> bool:
        """Whether every part passes that was examined."""
        parts = (self.structure, self.weights, self.outputs)
        return all(part.passes for part in parts if part is not None)

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values, verdicts included; null for what is no finite number."""
        value = asdict(self)
        for name in ("structure", "weights", "outputs"):
            part = getattr(self, name)
            if part is not None:
                value[name]["passes"] = part.passes
        found: dict[str, Any] = finite({**value, "passes": self.passes})
        return found

    def record(self) -> dict[str, Any]:
        """Returns what the manifest keeps: what the same files and versions give again."""
        value = self.to_json()
        del value["memory_bytes"]
        return value


def bound(formats: Sequence[str]) -> float:
    """Returns the mean KL that a file with weights of these formats may lose."""
    return max(MAX_KL["int4" if "int4" in f else f] for f in formats)


def structure(loss: Loss, layers: Sequence[LayerDifference]) -> Structure:
    """Judges the float32 graph; says behind which layer the first difference shows."""
    diverges = next(
        (f"layer {d.layer}" for d in layers if max(d.keys, d.values) > MAX_STRUCTURE), ""
    )
    if not diverges and loss.relative_difference > MAX_STRUCTURE:
        diverges = "after the last cache: the last layer, the final norm, or the head"
    return Structure(loss.relative_difference, MAX_STRUCTURE, diverges)


def weights(errors: Sequence[MatrixError]) -> Weights:
    """Judges the stored rows."""
    worst = max(errors, key=lambda e: e.share)
    bad = tuple(str(e) for e in errors if not e.share <= 1)
    place = f"{worst.parameter} row {worst.row}"
    return Weights(len(errors), worst.share, place, bad, any(e.is_compensated for e in errors))


def nearness(largest: float, *, is_compensated: bool) -> str:
    """Says how near stored rows are to their sources; see `Weights.largest`."""
    if is_compensated:
        return (
            f"each row within {largest:.3f} of what passes: half a step, or {COMPENSATED_BOUND}"
            " steps, root mean square, where errors make up for each other"
        )
    return f"each row within {largest:.3f} of half a step"
