"""Fills a skeleton: each file of the checkpoint is read once, front to back, and hashed on the way.

Rows become bytes of the file in a few threads (numpy lets them run side by side). Memory is a few
chunks of rows, whatever the model.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core.checkpoint import Checkpoint, SourceFile
from edgezoo_core.conversion import rows
from edgezoo_core.conversion.changes import NO_CHANGES, Changes
from edgezoo_core.conversion.encoding import encode
from edgezoo_core.conversion.program import Matrix, Program, Vector
from edgezoo_core.conversion.reading import Chunk, columns_of, read_file
from edgezoo_core.errors import CheckpointError
from edgezoo_core.types import Progress


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
    changes: Changes = NO_CHANGES,
    *,
    threads: int = 2,
    progress: Progress,
) -> tuple[SourceFile, ...]:
    """Writes every weight into a file that holds its skeleton.

    Args:
        output: The file, as long as the program says.
        program: Where each row goes.
        checkpoint: Where the rows come from.
        changes: What becomes of them on the way.
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
        writer = _Writer(sink.fileno(), changes)
        done = 0
        for name in checkpoint.files:
            path = checkpoint.folder / name
            tensors = [t for t in checkpoint.tensors.values() if t.file == name]
            digest = hashlib.sha256()
            with path.open("rb", buffering=0) as source:
                for chunk in read_file(source.fileno(), path, tensors, destinations, digest):
                    if chunk.tensor is not None:
                        for part in destinations[chunk.tensor.name]:
                            pool.submit(writer.write, chunk, part)
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


class _Writer:
    """Turns rows into bytes and writes them where they belong."""

    def __init__(self, file: int, changes: Changes) -> None:
        self._file = file
        self._changes = changes

    def write(self, chunk: Chunk, part: Destination) -> None:
        """Writes those of a chunk's rows that go to one destination."""
        tensor = chunk.tensor
        if tensor is None:
            return
        count = len(chunk.raw) // max(1, columns_of(tensor) * rows.DTYPES[str(tensor.dtype)])
        start, stop = max(chunk.start, part.start), min(chunk.start + count, part.stop)
        if start >= stop:
            return
        first = part.row + start - part.start
        encoded = encode(
            chunk.raw,
            tensor,
            chunk.start,
            start,
            stop,
            part.target,
            first,
            self._changes,
        )
        for offset, data in encoded:
            _write(self._file, data, offset)


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
