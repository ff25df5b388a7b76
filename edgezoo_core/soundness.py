"""Whether the tables of a .tflite are what a reader may follow: bounded, and within their lengths.

The generated reader checks no index: behind the end of a vector it reads what stands there, and a
position before the beginning counts from the end. And a vector that many tables share makes a few
kilobytes take hours to walk. So every count, index and name that is read later is looked at before,
in the bytes themselves: that takes a tenth of the generated reader's time.

Field numbers are those of schema.fbs of LiteRT 2.3.
"""

from __future__ import annotations

import struct
from typing import Any

from edgezoo_core.errors import ArtifactError

#: Elements of all vectors of tables and indices together. Source: max_tables of flatbuffers' own
#: verifier; a model of 80 layers and three signatures has some 100,000.
_MOST = 1_000_000
#: Longest name in bytes, and dimensions of a tensor.
_LONGEST_NAME, _HIGHEST_RANK = 4096, 16

_I32, _U32, _U64 = (struct.Struct(form) for form in ("<i", "<I", "<Q"))
_VTABLE = struct.Struct("<HH")


def refuse_unsound(content: Any, begin: int) -> None:
    """Checks a flatbuffer before it is read.

    Args:
        content: The file, as bytes or mapped.
        begin: Where in it the flatbuffer begins; the file's end is its end.

    Raises:
        ArtifactError: A vector is too long, an index leads nowhere, or a name is none.
    """
    try:
        _check(_Bytes(content, begin))
    except (struct.error, UnicodeDecodeError) as e:
        raise _unsound(str(e)) from e


def _check(content: _Bytes) -> None:
    model = content.table(content.target(content.begin))
    codes = len(model.tables(1))
    buffers = model.tables(4)
    for at in buffers:
        _check_buffer(content.table(at))
    tensors = []
    for at in model.tables(2):
        graph = content.table(at)
        found = graph.tables(0)
        for tensor in found:
            _check_tensor(content.table(tensor), max(len(buffers), 1))
        _check_indices("tensor", graph.numbers(1) + graph.numbers(2), len(found))
        for op in graph.tables(3):
            _check_operator(content.table(op), codes, len(found))
        graph.text(4)
        tensors.append(len(found))
    names = set()
    for at in model.tables(7):
        signature = content.table(at)
        name, graph_index = signature.text(2), signature.scalar(4, _U32)
        if not name or name in names:
            raise _unsound(f"a signature has no name, or two have the name {name!r}")
        names.add(name)
        _check_indices("subgraph", [graph_index], len(tensors))
        for pair in (content.table(t) for slot in (0, 1) for t in signature.tables(slot)):
            if pair.text(0) is None:
                raise _unsound(f"a tensor of {name} has no name")
            _check_indices("tensor", [pair.scalar(1, _U32)], tensors[graph_index])


def _check_buffer(buffer: _Table) -> None:
    buffer.vector(0, 1)
    offset, size = buffer.scalar(1, _U64), buffer.scalar(2, _U64)
    if offset > 1 and offset + size > buffer.content.size:
        raise _unsound(f"a constant ends at byte {offset + size} of {buffer.content.size}")


def _check_tensor(tensor: _Table, buffers: int) -> None:
    shape, signature = tensor.numbers(0), tensor.numbers(7)
    if max(len(shape), len(signature)) > _HIGHEST_RANK:
        raise _unsound(f"a tensor has {len(shape)} dimensions")
    if any(size < 0 for size in shape):
        raise _unsound(f"a tensor has the shape {list(shape)}")
    _check_indices("buffer", [tensor.scalar(2, _U32)], buffers)
    tensor.text(3)
    quantization = tensor.inner(4)
    if quantization:
        for slot, width in ((0, 4), (1, 4), (2, 4), (3, 8)):
            quantization.vector(slot, width)


def _check_operator(op: _Table, codes: int, tensors: int) -> None:
    _check_indices("operator code", [op.scalar(0, _U32)], codes)
    _check_indices("tensor", op.numbers(1), tensors, -1)  # -1 is none
    _check_indices("tensor", op.numbers(2), tensors)


def _check_indices(what: str, found: Any, length: int, least: int = 0) -> None:
    for index in found:
        if not least <= index < length:
            raise _unsound(f"{what} {index} of {length}")


class _Bytes:
    """A flatbuffer's bytes, and how much of them may still be walked through."""

    def __init__(self, content: Any, begin: int) -> None:
        self.content = content
        self.begin = begin
        self.end = len(content)
        self.size = self.end - begin
        self._left = min(_MOST, self.size)

    def read(self, kind: struct.Struct, at: int) -> int:
        if not self.begin <= at <= self.end - kind.size:
            raise _unsound(f"an offset leads to byte {at - self.begin} of {self.size}")
        value: int = kind.unpack_from(self.content, at)[0]
        return value

    def target(self, at: int) -> int:
        return at + self.read(_U32, at)

    def table(self, at: int) -> _Table:
        return _Table(self, at)

    def walked(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _unsound("its vectors have more elements than fit into it")


class _Table:
    """A table: its fields by number, absent ones empty."""

    def __init__(self, content: _Bytes, at: int) -> None:
        self.content = content
        self._at = at
        vtable = at - content.read(_I32, at)
        content.read(_U32, vtable)  # checks the place
        size, self._size = _VTABLE.unpack_from(content.content, vtable)
        if size % 2 or size < 4 or vtable + size > content.end:
            raise _unsound(f"a table of {size} bytes of offsets")
        self._slots = struct.unpack_from(f"<{size // 2 - 2}H", content.content, vtable + 4)

    def _place(self, slot: int) -> int | None:
        offset = self._slots[slot] if slot < len(self._slots) else 0
        return self._at + offset if offset else None

    def scalar(self, slot: int, kind: struct.Struct) -> int:
        place = self._place(slot)
        return 0 if place is None else self.content.read(kind, place)

    def inner(self, slot: int) -> _Table | None:
        place = self._place(slot)
        return None if place is None else self.content.table(self.content.target(place))

    def vector(self, slot: int, width: int) -> tuple[int, int]:
        """Returns where a vector's elements begin, and how many there are."""
        place = self._place(slot)
        if place is None:
            return 0, 0
        start = self.content.target(place)
        length = self.content.read(_U32, start)
        if start + 4 + length * width > self.content.end:
            raise _unsound(f"a vector of {length} elements goes beyond its end")
        return start + 4, length

    def numbers(self, slot: int) -> tuple[int, ...]:
        start, length = self.vector(slot, 4)
        self.content.walked(length)
        return struct.unpack_from(f"<{length}i", self.content.content, start)

    def tables(self, slot: int) -> list[int]:
        start, length = self.vector(slot, 4)
        self.content.walked(length)
        offsets = struct.unpack_from(f"<{length}I", self.content.content, start)
        return [start + 4 * i + offset for i, offset in enumerate(offsets)]

    def text(self, slot: int) -> str | None:
        start, length = self.vector(slot, 1)
        if length > _LONGEST_NAME:
            raise _unsound(f"a name has {length} bytes")
        self.content.walked(length // 64)
        return bytes(self.content.content[start : start + length]).decode() if start else None


def _unsound(what: str) -> ArtifactError:
    return ArtifactError(
        f"it is no sound .tflite file: {what}", remedy="obtain the file again, or convert it anew"
    )
