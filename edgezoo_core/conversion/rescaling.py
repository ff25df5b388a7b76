"""What a recipe folds, as factors of rows and columns of each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgezoo_core import folds
from edgezoo_core.folds import Place

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rescaling:
    """Powers of two that the values of a file are multiplied by, as the graph has them.

    Attributes:
        rows: Parameter -> factors of its rows, or elements, float32 [rows].
        columns: Parameter -> factors of its columns, float32 [columns].
        centered: Parameters that are a norm's weight as its distance from one.
    """

    rows: Mapping[str, Floats] = field(default_factory=dict)
    columns: Mapping[str, Floats] = field(default_factory=dict)
    centered: frozenset[str] = frozenset()

    def touches(self, parameter: str) -> bool:
        """Says whether a parameter's values change."""
        return parameter in self.rows or parameter in self.columns

    def matrix(self, parameter: str, first: int, values: Floats) -> Floats:
        """Returns rows from `first` on of a matrix, float32 [n, columns], multiplied."""
        if parameter in self.rows:
            values = values * self.rows[parameter][first : first + len(values), None]
        if parameter in self.columns:
            values = values * self.columns[parameter]
        return values

    def vector(self, parameter: str, first: int, values: Floats) -> Floats:
        """Returns elements from `first` on of a vector, float32 [n], multiplied."""
        if parameter in self.rows:
            values = values * self.rows[parameter][first : first + len(values)]
        return values


#: Of a recipe that folds nothing.
UNCHANGED = Rescaling()


def build(
    places: Sequence[Place],
    exponents: Mapping[str, Sequence[int]],
    shapes: Mapping[str, Sequence[int]],
    where: str,
) -> Rescaling:
    """Returns the factors of what a recipe folds.

    Args:
        places: Where the model's folds apply.
        exponents: The recipe's, by place.
        shapes: Of the parameters.
        where: Names the model in messages.

    Raises:
        RecipeError: The recipe folds what the model does not have.
    """
    rows: dict[str, Floats] = {}
    columns: dict[str, Floats] = {}
    centered = set()
    for place, chosen in folds.match(places, exponents, where):
        powers = np.ldexp(np.float32(1), np.array(chosen, np.int32))
        for target in place.targets:
            table, factors = (columns, powers) if target.axis else (rows, 1 / powers)
            spread = factors.reshape(target.groups, -1).repeat(target.repeats, 0).reshape(-1)
            size = shapes[target.parameter][target.axis]
            held = table.setdefault(target.parameter, np.ones(size, np.float32))
            held[target.start : target.start + len(spread)] *= spread
            if target.is_centered:
                centered.add(target.parameter)
    return Rescaling(rows, columns, frozenset(centered))


def apply(rescaling: Rescaling, module: torch.nn.Module) -> None:
    """Multiplies the parameters of a module whose weights are loaded."""
    import torch

    parameters: Mapping[str, Any] = dict(module.named_parameters())
    for name in {*rescaling.rows, *rescaling.columns}:
        parameter = parameters[name]
        values = parameter.detach().numpy()
        if name in rescaling.centered:
            # From here on it is the weight itself: the distance from one would be rounded again.
            values = values + np.float32(1)
            norm: Any = module.get_submodule(name.rpartition(".")[0])
            norm.zero_centered_gamma = False
        change = rescaling.matrix if values.ndim == 2 else rescaling.vector
        parameter.data = torch.from_numpy(np.ascontiguousarray(change(name, 0, values)))
