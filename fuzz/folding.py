"""Files of many zeros, made short: sections of a bundle begin at multiples of 16 KiB."""

from __future__ import annotations

import re

_LONGEST = 1 << 20
_RUN = re.compile(rb"\0+")


def fold(data: bytes) -> bytes:
    """Returns the bytes with each run of zeros as a zero and its length in two bytes."""

    def short(run: re.Match[bytes]) -> bytes:
        whole, rest = divmod(len(run[0]), 0xFFFF)
        return b"\0\xff\xff" * whole + (b"\0" + rest.to_bytes(2, "little") if rest else b"")

    return _RUN.sub(short, data)


def unfold(data: bytes) -> bytes:
    """Returns what was folded, or as much as a megabyte of it."""
    pieces: list[bytes] = []
    size = at = 0
    while at < len(data) and size < _LONGEST:
        zero = data.find(b"\0", at)
        end = len(data) if zero < 0 else zero
        pieces.append(data[at:end])
        size += end - at
        if zero >= 0:
            count = int.from_bytes(data[zero + 1 : zero + 3], "little")
            pieces.append(bytes(count))
            size += count
            end += 3
        at = end
    return b"".join(pieces)[:_LONGEST]
