"""The row program: where each element of a checkpoint goes in the file. Data only, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgezoo_core.types import RowSlice


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of the file.

    Attributes:
        parameter: Name of the module's parameter.
        format: Name of its format (see `edgezoo_core.recipe.FORMATS`).
        rows: Output channels.
        columns: Input channels.
        operation: `*` or `/` if each element is folded with `operand` first, else empty.
        operand: That number, float32.
        offset: Byte of the file where its first row begins.
        size_bytes: Bytes of all its rows.
        scales_offset: Byte where its scales begin, None if it has none.
    """

    parameter: str
    format: str
    rows: int
    columns: int
    operation: str
    operand: float
    offset: int
    size_bytes: int
    scales_offset: int | None


@dataclass(frozen=True, slots=True)
class Vector:
    """Elements of a vector, or of a matrix read as one, float32.

    Attributes:
        parameter: Name of the module's parameter.
        start: First element.
        stop: One past the last.
        shift: What is added to each.
        offset: Byte of the file where they begin.
    """

    parameter: str
    start: int
    stop: int
    shift: float
    offset: int


@dataclass(frozen=True, slots=True)
class Program:
    """How a file is filled.

    Attributes:
        head_bytes: Length of the skeleton that the file begins with.
        size_bytes: Length of the file.
        matrices: In the order of the file.
        vectors: In the order of the file.
        sources: Parameter -> the rows of the checkpoint that it is made of, in order.
    """

    head_bytes: int
    size_bytes: int
    matrices: tuple[Matrix, ...]
    vectors: tuple[Vector, ...]
    sources: Mapping[str, tuple[RowSlice, ...]]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Program:
        """Reads what `to_json` wrote."""
        return cls(
            value["head_bytes"],
            value["size_bytes"],
            tuple(Matrix(**m) for m in value["matrices"]),
            tuple(Vector(**v) for v in value["vectors"]),
            {
                name: tuple(RowSlice(**s) for s in slices)
                for name, slices in value["sources"].items()
            },
        )
