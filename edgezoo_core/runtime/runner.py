"""What a session asks of the program that runs a .tflite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Runner(Protocol):
    """Runs the signatures of one file and keeps its KV cache from one to the next."""

    def run(self, signature: str, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Runs a signature on the cache as it is; what comes out is the cache afterwards.

        Args:
            signature: Its name.
            inputs: All of its inputs but the cache, dtypes and shapes as the file says.
        """

    def logits(self) -> Floats:
        """Returns decode's last logits, float32 [V]."""

    def cache(self) -> dict[str, Floats]:
        """Returns a copy of the cache: `kv_cache_k_<i>`, `kv_cache_v_<i>`, float32."""

    def clear(self) -> None:
        """Fills the cache with zeros."""

    def close(self) -> None:
        """Frees the model; nothing can be run afterwards."""


def is_cache(name: str) -> bool:
    """Says whether an input or output belongs to the KV cache."""
    return name.startswith("kv_cache")
