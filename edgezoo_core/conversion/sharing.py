"""Tables of a flatbuffer that several others refer to, and that a file holds once.

The object API writes a table each time it meets it: the scales of all weights once per signature,
the decomposition of a norm once per layer. A flatbuffer may refer to one table from many places,
and readers see no difference.
"""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema


class _Shared:
    """Remembers where it was written."""

    _packed: tuple[Any, int] | None = None

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the schema's name
        """Returns the offset of the table, written at the first call."""
        if self._packed is None or self._packed[0] is not builder:
            self._packed = (builder, int(super().Pack(builder)))  # type: ignore[misc]
        return self._packed[1]


class SharedQuantization(_Shared, schema.QuantizationParametersT):
    """Scales and zero points of a matrix, the same in every signature."""


class SharedSubGraph(_Shared, schema.SubGraphT):
    """The decomposition of a composite operator, the same in every stamped layer."""
