"""The values that the stages hand to each other. Standard library only; all frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

Operator = Literal["EMBEDDING_LOOKUP", "FULLY_CONNECTED"]

#: Parts of a decoder that a recipe can name.
PARTS = ("embedding", "lm_head", "qkv", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Model:
    """What is being converted: the first argument of every hook.

    Attributes:
        family: Name of the plugin's entry point, `gemma` say.
        card_id: Model id of the card, or None for a fine-tune that has no card.
        source: `org/name@commit` of the hub, or the path of a folder. For messages: a graph that
            was traced once serves every checkpoint of the same config, so no hook may decide by it.
    """

    family: str
    card_id: str | None
    source: str


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Rows `start` to `stop` of a tensor of the checkpoint."""

    name: str
    start: int
    stop: int


class LazyTensor(Protocol):
    """A tensor of a checkpoint, or a row-wise concatenation of some, not read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's dimensions."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the checkpoint's tensors that it is made of, in row order."""

    @property
    def slices(self) -> tuple[RowSlice, ...]:
        """Rows of the checkpoint's tensors, in row order; their concatenation is the tensor."""

    def read(self) -> torch.Tensor:
        """Reads it: dtype as stored, shape as `shape`."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One entry point of the artifact.

    Attributes:
        name: `prefill_<T>` or `decode`.
        module: What is traced. Called with `inputs` as keyword arguments, it returns a mapping
            from output name to tensor or KV cache.
        inputs: Example inputs; only their dtypes and shapes matter.
    """

    name: str
    module: torch.nn.Module
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How one weight matrix is stored and computed with.

    Attributes:
        name: As recipes spell it.
        bits: Width of one stored weight.
        is_float: Whether the weight stays a floating-point number.
        is_dynamic: Whether the operator quantizes its activations to int8 at run time and computes
            in integers; otherwise the weights are dequantized and it computes in float32.
        block_size: Input channels that share one scale; None for one scale per output channel.
    """

    name: str
    bits: int
    is_float: bool
    is_dynamic: bool
    block_size: int | None = None

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Returns the stored bytes of a weight of this shape, scales included."""
        rows, columns = shape[0], shape[-1]
        weights = rows * columns * self.bits // 8
        if self.is_float:
            return weights
        if self.block_size:
            return weights + 2 * rows * (columns // self.block_size)
        return weights + 4 * rows


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the user asked for, before it meets a model.

    Attributes:
        name: Name of the recipe; part of the artifact's file name.
        default: Format of every part that nothing else names; None keeps float32.
        parts: Format by part (see `PARTS`).
        layers: Overrides: layer index (negative counts from the end) to format by part.
        is_smoothed: Whether the conversion calibrates, and chooses `folds` by what it measures.
        folds: Exponents of two by place, one for each channel (see `edgezoo_core.folds`).
        is_compensated: Whether integers are rounded so that their errors make up for each other,
            by what the weights read of a text (see `edgezoo_core.calibrating.rounding`).
    """

    name: str
    default: WeightFormat | None
    parts: Mapping[str, WeightFormat | None] = field(default_factory=dict)
    layers: Mapping[int, Mapping[str, WeightFormat | None]] = field(default_factory=dict)
    is_smoothed: bool = False
    folds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    is_compensated: bool = False

    @property
    def calibrates(self) -> bool:
        """Whether the conversion lets the model read a text first."""
        return self.is_smoothed or self.is_compensated


@dataclass(frozen=True, slots=True)
class WeightRule:
    """The format of one weight in one operator.

    Attributes:
        parameter: Name of the module's parameter.
        operator: The operator that reads it. A tied embedding has a rule for each of the two.
        part: One of `PARTS`, or the parameter's own name where it is none of them.
        layer: Index of the transformer block, None outside of them.
        shape: (output channels, input channels).
        format: None keeps float32.
    """

    parameter: str
    operator: Operator
    part: str
    layer: int | None
    shape: tuple[int, int]
    format: WeightFormat | None


@dataclass(frozen=True, slots=True)
class QuantPlan:
    """A recipe met with a model: what the quantizer is told, weight by weight."""

    name: str
    rules: tuple[WeightRule, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of an input or output of a signature."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SignatureSpec:
    """A signature as it stands in a file."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Progress(Protocol):
    """Whom a long piece of work tells how far it is."""

    def __call__(self, stage: str) -> None:
        """A stage begins: `progress("tracing prefill_8")`."""

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """So much of the current stage is done."""


class _Silent:
    def __call__(self, stage: str) -> None:
        pass

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        pass


#: The progress of a library caller that asked for none.
silent: Progress = _Silent()
