"""What a model computed over a text, kept on disk: a reference and a subject never run together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens that a model reads.

    Attributes:
        tokens: Ids, N of them.
        start: The first `start` are read at once; the logits behind the last of these, and behind
            each one after them, are wanted.
    """

    tokens: tuple[int, ...]
    start: int

    @property
    def scored(self) -> int:
        """Number P of positions whose logits are wanted."""
        return len(self.tokens) - self.start + 1


@dataclass(frozen=True, slots=True)
class Run:
    """What a model computed over a passage.

    Attributes:
        logits: float32 [P, V].
        keys: float32 [L, Hkv, N, D], after rope.
        values: float32 [L, Hkv, N, D].
    """

    logits: Floats
    keys: Floats
    values: Floats

    def beginning(self, other: Run) -> Run:
        """Returns the part that another run of the same passage has, which may be shorter."""
        positions, tokens = len(other.logits), other.keys.shape[2]
        return Run(self.logits[:positions], self.keys[:, :, :tokens], self.values[:, :, :tokens])


def create(folder: Path, name: str, shape: Sequence[int]) -> Any:
    """Returns a new array on disk, float32, to be filled."""
    return np.lib.format.open_memmap(
        folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=tuple(shape)
    )


def load(folder: Path) -> Run:
    """Opens a run; nothing is read yet."""
    return Run(*(np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("logits", "keys", "values")))
