"""Packs the header of a .litertlm; the builder's own schema has no way to change one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from edgezoo_core.bundle.sections import Item


class Placed(Protocol):
    """A section as a header has it."""

    @property
    def code(self) -> int:
        """Number of its data type."""

    @property
    def items(self) -> tuple[Item, ...]:
        """What is said of it."""

    @property
    def begin(self) -> int:
        """Offset of its first byte."""

    @property
    def end(self) -> int:
        """Offset behind its last byte."""


def pack(sections: Sequence[Placed], system: Sequence[Item]) -> bytes:
    """Packs a header.

    Args:
        sections: In their order.
        system: What it says of the whole.
    """
    import flatbuffers
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    objects = [
        schema.SectionObjectT(
            items=[_pair(item) for item in section.items],
            dataType=section.code,
            beginOffset=section.begin,
            endOffset=section.end,
        )
        for section in sections
    ]
    header = schema.LiteRTLMMetaDataT(
        systemMetadata=schema.SystemMetadataT(entries=[_pair(item) for item in system]),
        sectionMetadata=schema.SectionMetadataT(objects=objects),
    )
    builder = flatbuffers.Builder()
    builder.Finish(header.Pack(builder))
    return bytes(builder.Output())


def uuid_of(digests: Sequence[str]) -> Item:
    """Returns a uuid of the content; its length does not depend on it.

    Args:
        digests: sha256 of each section, in hex.
    """
    return Item("uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, "".join(digests))), "String")


def _pair(item: Item) -> Any:
    from litert_lm_builder import litertlm_builder
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    if item.value is None:
        return schema.KeyValuePairT(key=item.key)
    kind = litertlm_builder.DType(item.dtype.lower())
    return litertlm_builder.Metadata(item.key, item.value, kind).to_key_value_pair()
