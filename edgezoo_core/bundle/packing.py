"""Puts sections into one .litertlm, the same bytes for the same content."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core.bundle.vocabulary import Form
from edgezoo_core.types import Progress

_CHUNK = 1 << 22
#: Stands for the time of day, which would make every bundle differ.
_TIME = "1970-01-01T00:00:00+00:00"


@dataclass(frozen=True, slots=True)
class Sections:
    """Files that go into a bundle, whole and unchanged."""

    llm_metadata: Path
    executor_metadata: Path
    tokenizer: Path
    form: Form
    model: Path


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written.

    Attributes:
        size_bytes: Length of the bundle.
        sha256: Of the bundle.
        model_sha256: Of the model's section.
    """

    size_bytes: int
    sha256: str
    model_sha256: str


def pack(sections: Sections, output: Path, progress: Progress) -> Packed:
    """Writes a bundle; the model is copied by the system or in pieces, never held in memory.

    Args:
        sections: What goes in.
        output: Where to write.
        progress: Told of each stage.
    """
    from litert_lm_builder import litertlm_builder

    builder = litertlm_builder.LitertLmFileBuilder()
    builder.add_llm_metadata(str(sections.llm_metadata))
    builder.add_executor_metadata(str(sections.executor_metadata))
    if sections.form == "sentencepiece":
        builder.add_sentencepiece_tokenizer(str(sections.tokenizer))
    else:
        builder.add_hf_tokenizer(str(sections.tokenizer))
    kind = litertlm_builder.TfLiteModelType.PREFILL_DECODE
    builder.add_tflite_model(str(sections.model), kind)
    progress("writing the bundle")
    with output.open("wb") as file:
        builder.build(file)
    progress("hashing the bundle")
    model_sha256 = stamp(output)
    return Packed(output.stat().st_size, _sha256(output, 0), model_sha256)


def stamp(path: Path) -> str:
    """Replaces the random uuid by one of the content, and the time of day by none.

    Args:
        path: A bundle as the builder writes it; its header is written anew.

    Returns:
        The sha256 of its last section, the model.
    """
    from litert_lm_builder import litertlm_core as core
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    begin = core.HEADER_BEGIN_BYTE_OFFSET
    with path.open("rb+") as file:
        fixed = file.read(core.HEADER_END_LOCATION_BYTE_OFFSET)
        end = int.from_bytes(file.read(begin - len(fixed)), "little")
        table = schema.LiteRTLMMetaData.GetRootAs(file.read(end - begin)).SectionMetadata()
        sections = [table.Objects(i) for i in range(table.ObjectsLength())]
        digests = [_sha256(path, s.BeginOffset(), s.EndOffset()) for s in sections]
        packed = _header(sections, "".join(digests))
        content = fixed + (begin + len(packed)).to_bytes(begin - len(fixed), "little") + packed
        file.seek(0)
        file.write(content.ljust(sections[0].BeginOffset(), b"\0"))
    return digests[-1]


def _header(sections: Sequence[Any], content: str) -> bytes:
    """Packs a header anew; the builder's own schema has no way to change one.

    Args:
        sections: As they stand in the header.
        content: What the uuid is made of.
    """
    import flatbuffers
    from litert_lm_builder import litertlm_builder
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    def entry(key: str, value: str) -> Any:
        kind = litertlm_builder.DType.STRING
        return litertlm_builder.Metadata(key, value, kind).to_key_value_pair()

    system = [
        entry("uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, content))),
        entry("creation_timestamp", _TIME),
    ]
    objects = [
        schema.SectionObjectT(
            items=[entry(*_item(section.Items(i))) for i in range(section.ItemsLength())],
            dataType=section.DataType(),
            beginOffset=section.BeginOffset(),
            endOffset=section.EndOffset(),
        )
        for section in sections
    ]
    header = schema.LiteRTLMMetaDataT(
        systemMetadata=schema.SystemMetadataT(entries=system),
        sectionMetadata=schema.SectionMetadataT(objects=objects),
    )
    builder = flatbuffers.Builder()
    builder.Finish(header.Pack(builder))
    return bytes(builder.Output())


def _item(pair: Any) -> tuple[str, str]:
    from litert_lm_builder import litertlm_peek

    item = litertlm_peek.kvp_to_dict(pair)
    return str(item["key"]), str(item["value"])


def _sha256(path: Path, begin: int, end: int | None = None) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(path, begin, end):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path, begin: int, end: int | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        left = (path.stat().st_size if end is None else end) - begin
        while left and (chunk := file.read(min(left, _CHUNK))):
            left -= len(chunk)
            yield chunk
