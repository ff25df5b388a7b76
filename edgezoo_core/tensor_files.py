"""A tensor in a weight file, not read yet, and the safetensors files that hold such.

The header is parsed with the standard library alone: the converter opens files and reads rows by
offset in a process that never imports torch or numpy. Only `StoredTensor.read` imports them.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from edgezoo_core.errors import CheckpointError
from edgezoo_core.types import RowSlice

if TYPE_CHECKING:
    import torch

#: The dtypes of weights, as torch and numpy spell them.
FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})

#: Bytes before the header of a safetensors file: its length.
PREFIX_BYTES = 8
#: Longest header that the safetensors library reads. Source: MAX_HEADER_SIZE, safetensors tensor.rs
_MAX_HEADER_BYTES = 100_000_000
#: Bits of an element by dtype. Source: Dtype::bitsize, safetensors tensor.rs
_SAFETENSORS_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
_SAFETENSORS_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: One past the largest size that the library counts with.
_OVERFLOW = 1 << 64


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint, not read yet.

    Attributes:
        name: As the checkpoint spells it.
        shape: Its dimensions.
        dtype: As stored: float64, float32, float16 or bfloat16; None for any other.
        file: Name of the file that holds it.
        offset: Where its first element is in the file, in bytes from the start; the others follow
            in row-major order, little-endian. None where the file does not hold it like that.
        size_bytes: Bytes of its elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str | None
    file: str
    offset: int | None
    size_bytes: int
    _get: Callable[[], torch.Tensor] = field(repr=False, compare=False)
    _is_changed: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Its own name."""
        return (self.name,)

    @property
    def slices(self) -> tuple[RowSlice, ...]:
        """All of it, a scalar as one row; nothing where values are changed: no file has them."""
        if self._is_changed:
            return ()
        return (RowSlice(self.name, 0, self.shape[0] if self.shape else 1),)

    def read(self) -> torch.Tensor:
        """Reads it: dtype as stored, on the CPU."""
        return self._get()

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> StoredTensor:
        """Returns a tensor whose values are changed once they are read."""
        return replace(self, _get=lambda: change(self._get()), _is_changed=True)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor in a header. begin and end: bytes from the start of the data section."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def open_safetensors(path: Path, file: str) -> dict[str, StoredTensor]:
    """Reads the header of a safetensors file, and refuses whatever the safetensors library refuses.

    Source of the rules: SafeTensors::read_metadata and Metadata::validate, safetensors tensor.rs

    Args:
        path: Where it is.
        file: Its name inside the checkpoint.

    Raises:
        CheckpointError: It is truncated, damaged, or another file by that name.
    """
    try:
        with path.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            header_bytes = header_length(f.read(PREFIX_BYTES), size)
            header = f.read(header_bytes)
        return parse_safetensors(header, size, file, partial(_read_safetensors, path))
    except (OSError, ValueError, RecursionError) as e:
        raise _damaged_safetensors(path, e) from e


def header_length(prefix: bytes, size: int) -> int:
    """Returns how many bytes of a safetensors file its header takes.

    Args:
        prefix: The first `PREFIX_BYTES` of the file, fewer if it is shorter.
        size: Bytes of the whole file.

    Raises:
        ValueError: The file ends before, or the header is longer than any that is read.
    """
    if len(prefix) < PREFIX_BYTES:
        raise ValueError(f"it ends after {size} bytes, inside of the header's length")
    (header_bytes,) = struct.unpack("<Q", prefix)
    if header_bytes > min(_MAX_HEADER_BYTES, size - PREFIX_BYTES):
        raise ValueError(f"a header of {header_bytes} bytes in a file of {size}")
    return int(header_bytes)


def parse_safetensors(
    header: bytes, size: int, file: str, get: Callable[[str], torch.Tensor]
) -> dict[str, StoredTensor]:
    """Returns what a header describes; the rest of the file may be anywhere.

    Args:
        header: The bytes behind the prefix, as many as `header_length` says.
        size: Bytes of the whole file.
        file: Its name inside the checkpoint.
        get: Reads a tensor by its name.

    Raises:
        ValueError: The header is damaged, or describes another file.
        RecursionError: It nests too deeply.
    """
    start = PREFIX_BYTES + len(header)
    entries = _parse_header(header.decode("utf-8"))
    _check_coverage(entries, size - start)
    return {
        name: StoredTensor(
            name=name,
            shape=entry.shape,
            dtype=_SAFETENSORS_FLOATS.get(entry.dtype),
            file=file,
            offset=start + entry.begin,
            size_bytes=entry.end - entry.begin,
            _get=partial(get, name),
        )
        for name, entry in sorted(entries.items())
    }


def _damaged_safetensors(path: Path, cause: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is no readable safetensors file: {cause}",
        remedy="it is truncated or damaged: obtain the file again",
    )


def _read_safetensors(path: Path, name: str) -> torch.Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        handle: Any = safe_open(path, framework="pt")
        tensor: torch.Tensor = handle.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as e:
        raise _damaged_safetensors(path, e) from e
    return tensor


def _parse_header(text: str) -> dict[str, _Entry]:
    header = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    ):
        raise ValueError("its __metadata__ maps no strings to strings")
    return {name: _parse_entry(name, entry) for name, entry in header.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("its header has a key twice")
    for key in value:
        key.encode()  # half of a surrogate pair is no name, and could not be printed
    return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"its header holds {constant}, which is not JSON")


def _parse_entry(name: str, entry: Any) -> _Entry:
    if not isinstance(entry, dict):
        raise ValueError(f"{name} is described by no JSON object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _SAFETENSORS_BITS:
        raise ValueError(f"{name} has the dtype {dtype!r}, which the format does not know")
    if not _are_sizes(shape):
        raise ValueError(f"{name} has no shape")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has no data_offsets")
    begin, end = offsets
    return _Entry(dtype, tuple(shape), begin, end)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    # type(), since True is an int to isinstance.
    return isinstance(value, list) and all(type(n) is int and 0 <= n < _OVERFLOW for n in value)


def _check_coverage(entries: Mapping[str, _Entry], data_bytes: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position or entry.end < entry.begin:
            raise ValueError(f"{name} begins at {entry.begin}, expected {position}")
        position = entry.end
        bits = _bits(name, entry)
        if bits != 8 * (entry.end - entry.begin):
            raise ValueError(
                f"{name} takes {entry.end - entry.begin} bytes, expected {bits / 8:g} for"
                f" {entry.dtype} {list(entry.shape)}"
            )
    if position != data_bytes:
        raise ValueError(f"its tensors take {position} bytes, the file holds {data_bytes}")


def _bits(name: str, entry: _Entry) -> int:
    count = 1
    for factor in (*entry.shape, _SAFETENSORS_BITS[entry.dtype]):
        count *= factor
        if count >= _OVERFLOW:
            raise ValueError(f"{name} is too large: {entry.dtype} {list(entry.shape)}")
    return count
