"""Fills a skeleton: each file of the checkpoint is read once, front to back, and hashed on the way.

Rows become bytes of the file in a few threads (numpy lets them run side by side). Memory is a few
chunks of rows, whatever the model.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgezoo_core.checkpoint import Checkpoint, SourceFile
from edgezoo_core.conversion import rows
from edgezoo_core.conversion.program import Matrix, Program, Vector
from edgezoo_core.errors import CheckpointError, ConversionError
from edgezoo_core.recipe import FORMATS
from edgezoo_core.tensor_files import StoredTensor
from edgezoo_core.types import Progress

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet

#: Elements of a chunk. Fewer cost more calls, more cost memory and gain nothing.
_CHUNK_ELEMENTS = 1 << 20
#: Least rows of a chunk: merging an adapter in fewer rows at a time gives other bits.
_CHUNK_ROWS = 128
_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Destination:
    """Where rows of a tensor of the checkpoint go.

    Attributes:
        start: First row of the tensor.
        stop: One past the last.
        target: The matrix or vector of the file.
        row: Row of the target, for a vector element, where the first one goes.
    """

    start: int
    stop: int
    target: Matrix | Vector
    row: int


def check_streamable(program: Program, checkpoint: Checkpoint) -> None:
    """Checks, before anything is written, that every source can be read in rows.

    Raises:
        CheckpointError: A tensor is not stored contiguously and uncompressed.
    """
    for parameter, slices in program.sources.items():
        for part in slices:
            tensor = checkpoint.tensor(part.name)
            if tensor.offset is None:
                raise CheckpointError(
                    f"{checkpoint.source}: {part.name} (for {parameter}) cannot be read in parts:"
                    f" {tensor.file} is an old or compressed PyTorch file, or holds a view of it",
                    remedy="save the checkpoint as safetensors, or use --engine litert",
                )


def fill(
    output: Path,
    program: Program,
    checkpoint: Checkpoint,
    *,
    adapters: AdapterSet | None = None,
    threads: int = 2,
    progress: Progress,
) -> tuple[SourceFile, ...]:
    """Writes every weight into a file that holds its skeleton.

    Args:
        output: The file, as long as the program says.
        program: Where each row goes.
        checkpoint: Where the rows come from.
        adapters: What is merged into them on the way.
        threads: How many rows become bytes at the same time.
        progress: Told how many bytes of the checkpoint are done.

    Returns:
        Size and sha256 of every file of the checkpoint, in its order.

    Raises:
        CheckpointError: A weight is not a finite number, or too large for its format, or a file
            ends early.
    """
    destinations = plan(program)
    total = sum((checkpoint.folder / name).stat().st_size for name in checkpoint.files)
    sources = []
    with output.open("r+b") as sink, _Pool(threads) as pool:
        writer = _Writer(sink.fileno(), adapters)
        done = 0
        for name in checkpoint.files:
            path = checkpoint.folder / name
            tensors = [t for t in checkpoint.tensors.values() if t.file == name]
            digest = hashlib.sha256()
            with path.open("rb", buffering=0) as source:
                for raw, tensor, row in _read(source.fileno(), path, tensors, destinations, digest):
                    if tensor is not None:
                        for part in destinations[tensor.name]:
                            pool.submit(writer.write, raw, tensor, row, part)
                    progress.advance(done + os.lseek(source.fileno(), 0, os.SEEK_CUR), total)
                size = os.fstat(source.fileno()).st_size
            done += size
            sources.append(SourceFile(name, size, digest.hexdigest()))
    return tuple(sources)


def plan(program: Program) -> Mapping[str, Sequence[Destination]]:
    """Turns a program around: tensor of the checkpoint -> where its rows go."""
    targets: dict[str, list[Matrix | Vector]] = {}
    everything: list[Matrix | Vector] = [*program.matrices, *program.vectors]
    for target in everything:
        targets.setdefault(target.parameter, []).append(target)
    destinations: dict[str, list[Destination]] = {}
    for parameter, slices in program.sources.items():
        row = 0
        for part in slices:
            for target in targets[parameter]:
                first, last = 0, row + part.stop - part.start
                if isinstance(target, Vector):
                    first, last = target.start, min(last, target.stop)
                start, stop = max(row, first), last
                if start < stop:
                    moved = Destination(
                        part.start + start - row, part.start + stop - row, target, start - first
                    )
                    destinations.setdefault(part.name, []).append(moved)
            row += part.stop - part.start
    return destinations


def columns_of(tensor: StoredTensor) -> int:
    """Returns the elements of a row; of a vector each element is a row."""
    return int(np.prod(tensor.shape[1:], dtype=np.int64))


def chunk_rows(tensor: StoredTensor) -> list[tuple[int, int]]:
    """Splits the rows of a tensor into chunks, none of them short."""
    count = tensor.shape[0] if tensor.shape else 1
    height = max(_CHUNK_ROWS, _CHUNK_ELEMENTS // max(1, columns_of(tensor)))
    return rows.chunks(count, height)


def _read(
    file: int,
    path: Path,
    tensors: Sequence[StoredTensor],
    destinations: Mapping[str, Sequence[Destination]],
    digest: Any,
) -> Iterator[tuple[bytes, StoredTensor | None, int]]:
    """Reads a file from front to back: (bytes, tensor, first row), hashing every byte once."""
    wanted = sorted(
        (t for t in tensors if t.name in destinations), key=lambda t: (t.offset, t.name)
    )
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
            yield raw, tensor, start
    yield from _pass_over(file, path, os.fstat(file).st_size, digest)


def _pass_over(
    file: int, path: Path, end: int, digest: Any
) -> Iterator[tuple[bytes, StoredTensor | None, int]]:
    """Hashes what no row is in, up to an offset."""
    while (position := os.lseek(file, 0, os.SEEK_CUR)) < end:
        raw = _exactly(file, path, position, min(_READ_BYTES, end - position))
        digest.update(raw)
        os.lseek(file, position + len(raw), os.SEEK_SET)
        yield raw, None, 0


def read_rows(path: Path, tensor: StoredTensor, start: int, stop: int) -> bytes:
    """Reads some rows of a tensor as stored."""
    width = columns_of(tensor) * rows.DTYPES[str(tensor.dtype)]
    with path.open("rb") as file:
        offset = (tensor.offset or 0) + start * width
        return _exactly(file.fileno(), path, offset, (stop - start) * width)


def _exactly(file: int, path: Path, offset: int, size: int) -> bytes:
    raw = os.pread(file, size, offset)
    while len(raw) < size:
        more = os.pread(file, size - len(raw), offset + len(raw))
        if not more:
            raise CheckpointError(
                f"{path} ended at byte {offset + len(raw)} while it was read",
                remedy="something changed it meanwhile: obtain it again",
            )
        raw += more
    return raw


class _Writer:
    """Turns rows into bytes and writes them where they belong."""

    def __init__(self, file: int, adapters: AdapterSet | None) -> None:
        self._file = file
        self._adapters = adapters

    def write(self, raw: bytes, tensor: StoredTensor, row: int, part: Destination) -> None:
        """Writes those of a chunk's rows that go to one destination."""
        count = len(raw) // max(1, columns_of(tensor) * rows.DTYPES[str(tensor.dtype)])
        start, stop = max(row, part.start), min(row + count, part.stop)
        if start >= stop:
            return
        first = part.row + start - part.start
        for offset, data in encode(raw, tensor, row, start, stop, part.target, first,
                                   self._adapters):  # fmt: skip
            _write(self._file, data, offset)


def encode(
    raw: bytes,
    tensor: StoredTensor,
    row: int,
    start: int,
    stop: int,
    target: Matrix | Vector,
    first: int,
    adapters: AdapterSet | None,
) -> list[tuple[int, memoryview]]:
    """Turns rows of a tensor into bytes of the file.

    Args:
        raw: A chunk of the tensor as stored.
        tensor: The tensor.
        row: The chunk's first row.
        start: First of the rows that are wanted.
        stop: One past the last.
        target: The matrix or vector that they belong to.
        first: Row of the target, for a vector element, where they go.
        adapters: What is merged into the whole chunk before.

    Returns:
        (byte of the file, bytes), data before scales.

    Raises:
        CheckpointError: A value is not finite, or too large for the format.
    """
    columns = columns_of(tensor)
    dtype = str(tensor.dtype)
    width = columns * rows.DTYPES[dtype]
    values: Any = memoryview(raw)[(start - row) * width : (stop - row) * width]
    if adapters is not None and adapters.touches(tensor.name):
        merged = _merged(raw, tensor, row, adapters)[start - row : stop - row]
        values, dtype = np.ascontiguousarray(merged).view(np.uint8).reshape(-1), "float32"
    fmt = None
    try:
        if isinstance(target, Vector):
            moved = rows.widen(values, dtype, columns)
            if target.shift:
                moved = moved + np.float32(target.shift)
            encoded = rows.encode(moved, None)
        else:
            fmt = FORMATS[target.format]
            if target.operation:
                operand = np.float32(target.operand)
                widened = rows.widen(values, dtype, columns)
                folded = widened * operand if target.operation == "*" else widened / operand
                encoded = rows.encode(folded, fmt)
            else:
                encoded = rows.convert(values, dtype, columns, fmt)
    except rows.UnusableValueError as e:
        raise CheckpointError(
            f"{tensor.name} in {tensor.file} has the value {e.value} at row {start + e.row}, column"
            f" {e.column}, which {fmt.name if fmt else 'float32'} cannot hold",
            remedy="the checkpoint is damaged or its training diverged"
            if not np.isfinite(e.value)
            else "choose another recipe for this part",
        ) from e
    if isinstance(target, Vector):
        return [(target.offset + 4 * first, _bytes(encoded.data))]
    result = [(target.offset + first * target.columns * _bits(target) // 8, _bytes(encoded.data))]
    if encoded.scales is not None:
        if target.scales_offset is None:
            raise ConversionError(
                f"{target.parameter} has no place for its scales",
                remedy="clear the cache: edgezoo cache clear",
            )
        size = encoded.scales.itemsize * int(np.prod(encoded.scales.shape[1:], dtype=np.int64))
        result.append((target.scales_offset + first * size, _bytes(encoded.scales)))
    return result


def _merged(raw: bytes, tensor: StoredTensor, row: int, adapters: AdapterSet) -> Any:
    """Returns a chunk with the adapters merged in: float32 [rows, columns]."""
    import torch  # its matrix product, as peft uses it, decides the last bit

    torch.set_num_threads(1)
    values = torch.from_numpy(rows.widen(raw, str(tensor.dtype), columns_of(tensor)).copy())
    adapters.merge(tensor.name, row, values)
    return values.numpy()


def _bits(target: Matrix) -> int:
    fmt = FORMATS[target.format]
    return fmt.bits if fmt else 32


def _bytes(values: Any) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _write(file: int, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


class _Pool:
    """A few threads that work on a bounded number of chunks; the first fault stops all."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads)
        self._free = threading.Semaphore(threads + 2)
        self._fault: BaseException | None = None

    def __enter__(self) -> _Pool:
        return self

    def submit(self, call: Any, *arguments: Any) -> None:
        """Waits for room, then hands a call to a thread; raises the fault of an earlier one."""
        self._free.acquire()
        if self._fault is not None:
            raise self._fault
        self._executor.submit(call, *arguments).add_done_callback(self._done)

    def _done(self, future: Future[Any]) -> None:
        if not future.cancelled() and self._fault is None:
            self._fault = future.exception()
        self._free.release()

    def __exit__(self, kind: Any, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None and self._fault is not None:
            raise self._fault
