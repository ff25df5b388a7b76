"""Weights that were rounded before the conversion: a file for each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import save_file

from edgezoo_core.conversion.rows import Encoded
from edgezoo_core.types import WeightFormat

#: What the names of the files end in.
SUFFIX = ".safetensors"


class Codes:
    """Rows as a .tflite stores them, by parameter and format; read where they are asked for.

    Args:
        paths: Files that `save` wrote; they may be deleted once they are open.

    Raises:
        FileNotFoundError: One is not there.
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._files: dict[str, Any] = {
            path.name.removesuffix(SUFFIX): safe_open(path, "numpy") for path in paths
        }

    def rows(
        self, parameter: str, fmt: WeightFormat | None, first: int, count: int
    ) -> Encoded | None:
        """Returns rows of a weight, or None if it was not rounded before."""
        file = self._files.get(_key(parameter, fmt)) if fmt else None
        if file is None:
            return None
        data, scales = (file.get_slice(name)[first : first + count] for name in ("data", "scales"))
        return Encoded(data, scales)


#: Of a recipe that leaves rounding to the conversion.
NO_CODES = Codes()


def save(folder: Path, parameter: str, fmt: WeightFormat, encoded: Encoded) -> None:
    """Writes a whole weight into a folder."""
    tensors = {"data": encoded.data}
    if encoded.scales is not None:
        tensors["scales"] = encoded.scales
    save_file(tensors, folder / f"{_key(parameter, fmt)}{SUFFIX}")


def _key(parameter: str, fmt: WeightFormat) -> str:
    # What computes with them does not matter: a tied weight is stored once for both its uses.
    return f"{parameter}.int{fmt.bits}.{fmt.block_size or 'row'}"
