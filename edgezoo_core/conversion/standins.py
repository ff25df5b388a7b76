"""Parameters without values: numbers that stand for each weight while a graph is traced.

A graph does not depend on the values of its weights, so none is read to build it. A matrix is one
number seen through strides of zero, which costs no memory and lowers to a uniform constant; a
vector (a norm, a bias) holds consecutive numbers, so that it stays as dense as a real one and the
compiler treats it alike. All numbers are 1 + k / 2^22 with k used once in the whole model: exact in
float32, and so is one more than them, which is what Gemma's norms become.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgezoo_core.errors import ConversionError

Floats = npt.NDArray[np.float32]

_STEPS = 2**22
#: What may have been added to a vector on the way: nothing, or one (a norm stored around zero).
SHIFTS = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class StandIn:
    """What stands for one parameter.

    Attributes:
        parameter: Its name.
        shape: Its shape.
        first: k of its first number.
    """

    parameter: str
    shape: tuple[int, ...]
    first: int

    @property
    def is_matrix(self) -> bool:
        """Whether one number stands for all elements."""
        return len(self.shape) >= 2

    @property
    def count(self) -> int:
        """How many numbers it takes."""
        return 1 if self.is_matrix else int(np.prod(self.shape, dtype=np.int64))

    def values(self) -> Floats:
        """Returns its numbers: float32 [count]."""
        k = np.arange(self.first, self.first + self.count, dtype=np.float64)
        return (1 + k / _STEPS).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Found:
    """Elements of a parameter, recognized in a constant of a graph.

    Attributes:
        parameter: Its name.
        start: First of its elements, in row-major order.
        stop: One past the last.
        shift: What was added to each.
    """

    parameter: str
    start: int
    stop: int
    shift: float = 0.0


class StandIns:
    """The stand-ins of a model.

    Args:
        parameters: Name and shape of each parameter; one entry for parameters that are tied.

    Raises:
        ConversionError: The vectors have more elements than there are numbers.
    """

    def __init__(self, parameters: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        self.by_name: dict[str, StandIn] = {}
        self._firsts: list[int] = []
        self._ordered: list[StandIn] = []
        first = 1  # 1.0 itself is too common to stand for anything
        for name, shape in parameters:
            standin = StandIn(name, shape, first)
            self.by_name[name] = standin
            self._firsts.append(first)
            self._ordered.append(standin)
            first += standin.count
        if first > _STEPS:
            raise ConversionError(
                f"the model's vectors have {first} elements, more than the engine can tell apart"
                f" ({_STEPS})",
                remedy="use --engine litert",
            )

    def matrix(self, value: float) -> StandIn | None:
        """Returns the matrix that a uniform constant of this value is, None if it is none."""
        standin = self._owner(value)
        return standin if standin and standin.is_matrix else None

    def vector(self, constant: Floats) -> Found | None:
        """Returns what part of which vector a constant is, None if it is none.

        Args:
            constant: float32, any shape; read in row-major order.
        """
        flat = constant.reshape(-1)
        for shift in SHIFTS:
            value = np.float32(flat[0]) - np.float32(shift)
            standin = self._owner(float(value))
            if standin is None or standin.is_matrix:
                continue
            start = round((float(value) - 1) * _STEPS) - standin.first
            stop = start + flat.size
            # A lone number (1.5, say) may stand anywhere in a graph for itself.
            if flat.size == 1 and standin.count > 1:
                continue
            expected = standin.values()[start:stop] + np.float32(shift)
            if stop <= standin.count and np.array_equal(flat, expected):
                return Found(standin.parameter, start, stop, shift)
        return None

    def _owner(self, value: float) -> StandIn | None:
        k = (value - 1) * _STEPS
        if not (1 <= k < _STEPS and k.is_integer()):
            return None
        at = int(np.searchsorted(self._firsts, k, side="right")) - 1
        standin = self._ordered[at] if at >= 0 else None
        return standin if standin and k < standin.first + standin.count else None


def looks_derived(constant: Floats) -> bool:
    """Whether a constant looks computed from a stand-in.

    Whatever smooth function a compiler applies to numbers so close together, they stay close
    together and all different; the tables of real graphs (masks, frequencies, shapes) do not.
    """
    flat = constant.reshape(-1)
    if flat.size < 8 or not np.isfinite(flat).all():
        return False
    low, high = float(flat.min()), float(flat.max())
    is_close = low * high > 0 and high - low < 0.5 * max(abs(low), abs(high))
    return is_close and np.unique(flat).size == flat.size


def install(module: Any) -> StandIns:
    """Replaces the parameters of a module by their stand-ins; tied parameters stay tied.

    Args:
        module: A torch.nn.Module, parameters on meta.
    """
    import torch  # the other half of this module serves a process without torch

    holders: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
        shapes[id(parameter)] = tuple(parameter.shape)
    standins = StandIns((names[0], shapes[key]) for key, names in holders.items())
    for names in holders.values():
        standin = standins.by_name[names[0]]
        values = torch.from_numpy(standin.values())
        values = values.expand(standin.shape) if standin.is_matrix else values.view(standin.shape)
        parameter = torch.nn.Parameter(values, requires_grad=False)
        for name in names:
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, parameter)
    return standins


def names_of(module: Any) -> Mapping[int, str]:
    """Returns id of parameter -> the name that its stand-in goes by."""
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    return names
