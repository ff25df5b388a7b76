"""What is printed to stdout passes here: names, texts and answers of strangers, tamed."""

from __future__ import annotations

from typing import Any, TextIO, cast

from edgezoo_core.errors import tame


class _Tamed:
    """A text stream whose reader's terminal obeys nothing that is written but newlines and tabs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(tame(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # bytes would go past
            raise AttributeError(name)
        return getattr(self._stream, name)


def tamed(stream: TextIO) -> TextIO:
    """Returns a stream that writes to another what a terminal will not obey."""
    return stream if isinstance(stream, _Tamed) else cast("TextIO", _Tamed(stream))
