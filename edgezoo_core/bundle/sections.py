"""What is in a .litertlm, whoever made it. No model is read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgezoo_core.errors import ArtifactError

#: Kinds of sections that are read here, as the format calls them; others are left alone.
LLM_METADATA: Literal["LlmMetadataProto"] = "LlmMetadataProto"
EXECUTOR_METADATA: Literal["ExecutorMetadataProto"] = "ExecutorMetadataProto"
SENTENCEPIECE = "SP_Tokenizer"
HUGGINGFACE = "HF_Tokenizer_Zlib"
MODEL = "TFLiteModel"

#: Values of a model's item `model_type`.
PREFILL_DECODE = "tf_lite_prefill_decode"
EMBEDDER = "tf_lite_embedder"

#: LiteRT-LM looks no further for the header: `kLitertLmHeaderMaxSize`.
LONGEST_HEADER = 16 * 1024

_MAJOR = 1
#: No metadata and no tokenizer is longer; the bound keeps one that lies from filling the memory.
_LONGEST_CONTENT = 1 << 28
_REMEDY = "obtain the file again, or make it anew with `edgezoo bundle`"
_DAMAGE = (struct.error, ValueError, TypeError, IndexError, AttributeError)

Message = Literal["LlmMetadataProto", "ExecutorMetadataProto"]


@dataclass(frozen=True, slots=True)
class Item:
    """What a header says under a key: a value, and its type in the builder's words."""

    key: str
    value: Any
    dtype: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a bundle.

    Attributes:
        index: Its place in the header.
        kind: Name of its data type in the format.
        code: Number of its data type in the format.
        begin: Offset of its first byte.
        end: Offset behind its last byte.
        items: What the header says of it.
    """

    index: int
    kind: str
    code: int
    begin: int
    end: int
    items: tuple[Item, ...]

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self.end - self.begin

    @property
    def model_type(self) -> str | None:
        """What a model, or a tokenizer, is for; None if the header does not say."""
        found = [i.value for i in self.items if i.key.lower() == "model_type"]
        return str(found[-1]).lower() if found else None


@dataclass(frozen=True, slots=True)
class Contents:
    """A bundle.

    Attributes:
        path: The .litertlm.
        sections: In the order of the header.
        system: What the header says of the whole.
        preamble: What stands before the header's length: magic number, version, padding.
    """

    path: Path
    sections: tuple[Section, ...]
    system: tuple[Item, ...]
    preamble: bytes

    def of_kind(self, *kinds: str) -> list[Section]:
        """Returns the sections of these kinds."""
        return [s for s in self.sections if s.kind in kinds]

    def models(self, model_type: str = PREFILL_DECODE) -> list[Section]:
        """Returns the models of a type; one of no type is the language model."""
        return [s for s in self.of_kind(MODEL) if (s.model_type or PREFILL_DECODE) == model_type]

    def tokenizers(self) -> list[Section]:
        """Returns the language model's tokenizers, first the one that LiteRT-LM takes."""
        found = [*self.of_kind(SENTENCEPIECE)[::-1], *self.of_kind(HUGGINGFACE)[::-1]]
        return [s for s in found if s.model_type in (None, PREFILL_DECODE)]

    def read(self, section: Section) -> bytes:
        """Returns the bytes of metadata or of a tokenizer, a compressed one's as they were.

        Raises:
            ArtifactError: It is damaged, or too long for what it is said to be.
        """
        if section.size_bytes > _LONGEST_CONTENT:
            raise self._damaged(section, f"has {section.size_bytes} bytes")
        try:
            with self.path.open("rb") as file:
                file.seek(section.begin)
                content = file.read(section.size_bytes)
        except OSError as e:
            raise ArtifactError(f"{self.path} cannot be read: {e}", remedy=_REMEDY) from e
        return self._decompressed(section, content) if section.kind == HUGGINGFACE else content

    def message(self, kind: Message) -> Any | None:
        """Returns the protocol buffer in a section, the last if there are several.

        Raises:
            ArtifactError: It is none.
        """
        from google.protobuf.message import DecodeError

        found = self.of_kind(kind)
        if not found:
            return None
        message = new_message(kind)
        try:
            message.ParseFromString(self.read(found[-1]))
        except DecodeError as e:
            raise self._damaged(found[-1], "is no protocol buffer of that kind") from e
        return message

    def _decompressed(self, section: Section, content: bytes) -> bytes:
        # Eight bytes before the compressed ones say how many they were.
        length = int.from_bytes(content[:8], "little")
        if length > _LONGEST_CONTENT:
            raise self._damaged(section, f"says that it decompresses to {length} bytes")
        try:
            found = zlib.decompressobj().decompress(content[8:], length + 1)
        except zlib.error as e:
            raise self._damaged(section, f"cannot be decompressed: {e}") from e
        if len(found) != length:
            raise self._damaged(section, f"does not decompress to {length} bytes")
        return found

    def _damaged(self, section: Section, what: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path}: section {section.index}, {section.kind}, {what}", remedy=_REMEDY
        )


def open_bundle(path: Path) -> Contents:
    """Reads the header of a .litertlm.

    Raises:
        ArtifactError: It is none, or its header is damaged or does not fit the file.
    """
    from litert_lm_builder import litertlm_core as core
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            begin = file.read(LONGEST_HEADER)
    except OSError as e:
        raise ArtifactError(f"{path}: {e.strerror or e}", remedy="check the path") from e
    preamble, first = core.HEADER_END_LOCATION_BYTE_OFFSET, core.HEADER_BEGIN_BYTE_OFFSET
    if not begin.startswith(core.HEADER_MAGIC_BYTES):
        raise ArtifactError(f"{path} is no .litertlm file", remedy="name a bundle for LiteRT-LM")
    major = int.from_bytes(begin[8:12], "little")
    if major != _MAJOR:
        raise ArtifactError(
            f"{path} has version {major} of the format, expected {_MAJOR}",
            remedy="make it anew with `edgezoo bundle`",
        )
    end = int.from_bytes(begin[preamble:first], "little")
    if not first < end <= len(begin):
        raise ArtifactError(f"{path}: its header ends at byte {end}", remedy=_REMEDY)
    try:
        header = schema.LiteRTLMMetaData.GetRootAs(begin[first:end])
        contents = Contents(
            path, tuple(_sections(header)), tuple(_system(header)), begin[:preamble]
        )
    except _DAMAGE as e:
        raise ArtifactError(f"{path} has a damaged header: {e}", remedy=_REMEDY) from e
    _refuse_lies(contents, end, size)
    return contents


def is_bundle(path: Path) -> bool:
    """Tells by its first bytes whether a file is a .litertlm.

    Raises:
        ArtifactError: It cannot be read.
    """
    from litert_lm_builder import litertlm_core as core

    try:
        with path.open("rb") as file:
            return bool(file.read(len(core.HEADER_MAGIC_BYTES)) == core.HEADER_MAGIC_BYTES)
    except OSError as e:
        raise ArtifactError(f"{path}: {e.strerror or e}", remedy="check the path") from e


def new_message(kind: Message) -> Any:
    """Returns an empty protocol buffer for a kind of section."""
    from litert_lm_builder.runtime.proto import executor_metadata_pb2, llm_metadata_pb2

    if kind == LLM_METADATA:
        return llm_metadata_pb2.LlmMetadata()
    return executor_metadata_pb2.ExecutorMetadata()


def _sections(header: Any) -> Iterator[Section]:
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    names = {v: k for k, v in vars(schema.AnySectionDataType).items() if isinstance(v, int)}
    table = header.SectionMetadata()
    for index in range(table.ObjectsLength()):
        found = table.Objects(index)
        items = tuple(_item(found.Items(i)) for i in range(found.ItemsLength()))
        code = found.DataType()
        kind = names.get(code, f"unknown kind {code}")
        yield Section(index, kind, code, found.BeginOffset(), found.EndOffset(), items)


def _system(header: Any) -> Iterator[Item]:
    table = header.SystemMetadata()
    if table is not None:
        yield from (_item(table.Entries(i)) for i in range(table.EntriesLength()))


def _item(pair: Any) -> Item:
    from litert_lm_builder import litertlm_peek

    found: Mapping[str, Any] = litertlm_peek.kvp_to_dict(pair)
    return Item(found["key"] or "", found["value"], found["value_type"])


def _refuse_lies(contents: Contents, end: int, size: int) -> None:
    for section in contents.sections:
        if not end <= section.begin <= section.end <= size:
            raise ArtifactError(
                f"{contents.path} has {size} bytes, section {section.index}, {section.kind}, goes"
                f" from {section.begin} to {section.end}",
                remedy=_REMEDY,
            )
