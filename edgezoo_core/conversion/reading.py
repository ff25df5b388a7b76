"""Files of a checkpoint, read in chunks of rows and hashed on the way."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgezoo_core.conversion import rows
from edgezoo_core.errors import CheckpointError
from edgezoo_core.tensor_files import StoredTensor

#: Elements of a chunk. Fewer cost more calls, more cost memory and gain nothing.
_CHUNK_ELEMENTS = 1 << 20
#: Least rows of a chunk: merging an adapter in fewer rows at a time gives other bits.
_CHUNK_ROWS = 128
_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a tensor, as stored; or bytes of a file that belong to no row.

    Attributes:
        raw: The bytes.
        tensor: The tensor, None if there is none.
        start: Its first row here.
    """

    raw: bytes
    tensor: StoredTensor | None = None
    start: int = 0


def columns_of(tensor: StoredTensor) -> int:
    """Returns the elements of a row; of a vector each element is a row."""
    return int(np.prod(tensor.shape[1:], dtype=np.int64))


def chunk_rows(tensor: StoredTensor) -> list[tuple[int, int]]:
    """Splits the rows of a tensor into chunks, none of them short."""
    count = tensor.shape[0] if tensor.shape else 1
    height = max(_CHUNK_ROWS, _CHUNK_ELEMENTS // max(1, columns_of(tensor)))
    return rows.chunks(count, height)


def read_file(
    file: int,
    path: Path,
    tensors: Sequence[StoredTensor],
    needed: Collection[str],
    digest: Any,
) -> Iterator[Chunk]:
    """Reads a file from front to back and hashes every byte once.

    Args:
        file: Descriptor of the file; its position says how far it is.
        path: Its path, for messages.
        tensors: Those that it holds.
        needed: Names of those whose rows are wanted.
        digest: What is updated.

    Raises:
        CheckpointError: The file ends early, or cannot be read.
    """
    wanted = sorted((t for t in tensors if t.name in needed), key=lambda t: (t.offset, t.name))
    for tensor in wanted:
        offset = tensor.offset or 0
        yield from _pass_over(file, path, offset, digest)
        width = columns_of(tensor) * rows.DTYPES[str(tensor.dtype)]
        for start, stop in chunk_rows(tensor):
            raw = _exactly(file, path, offset + start * width, (stop - start) * width)
            # Tensors of one storage overlap: what was hashed already is not hashed again.
            position = os.lseek(file, 0, os.SEEK_CUR)
            end = offset + stop * width
            if end > position:
                digest.update(memoryview(raw)[position - (offset + start * width) :])
                os.lseek(file, end, os.SEEK_SET)
            yield Chunk(raw, tensor, start)
    yield from _pass_over(file, path, os.fstat(file).st_size, digest)


def _pass_over(file: int, path: Path, end: int, digest: Any) -> Iterator[Chunk]:
    """Hashes what no row is in, up to an offset."""
    while (position := os.lseek(file, 0, os.SEEK_CUR)) < end:
        raw = _exactly(file, path, position, min(_READ_BYTES, end - position))
        digest.update(raw)
        os.lseek(file, position + len(raw), os.SEEK_SET)
        yield Chunk(raw)


def read_rows(path: Path, tensor: StoredTensor, start: int, stop: int) -> bytes:
    """Reads some rows of a tensor as stored."""
    width = columns_of(tensor) * rows.DTYPES[str(tensor.dtype)]
    with path.open("rb") as file:
        offset = (tensor.offset or 0) + start * width
        return _exactly(file.fileno(), path, offset, (stop - start) * width)


def _exactly(file: int, path: Path, offset: int, size: int) -> bytes:
    raw = b""
    while len(raw) < size:
        try:
            more = os.pread(file, size - len(raw), offset + len(raw))
        except OSError as e:
            raise CheckpointError(
                f"{path} cannot be read at byte {offset + len(raw)}: {e.strerror}",
                remedy="the disk that it is on has a fault: obtain it again, to another one",
            ) from e
        if not more:
            raise CheckpointError(
                f"{path} ended at byte {offset + len(raw)} while it was read",
                remedy="something changed it meanwhile: obtain it again",
            )
        raw += more
    return raw
