"""A .litertlm with some of its sections exchanged; all that is not understood stays as it is."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgezoo_core.bundle import header, sections
from edgezoo_core.bundle.sections import Contents, Item, Section
from edgezoo_core.errors import ArtifactError

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Part:
    """A new section.

    Attributes:
        kind: Name of its data type in the format.
        content: Its bytes; of a Hugging Face tokenizer the JSON text as it is.
        replaces: The sections that it stands for. It comes where the first of them was and keeps
            that one's items; where there is none, it comes before all others.
    """

    kind: str
    content: bytes
    replaces: Sequence[Section] = ()


@dataclass(slots=True)
class _Entry:
    """A section of the new file: its data type, items, content, and, once written, its place."""

    code: int
    items: tuple[Item, ...]
    content: Section | bytes
    # An offset of 0 is left out of a header, which would be longer once the offsets are known.
    begin: int = 1
    end: int = 1


def write(contents: Contents, parts: Sequence[Part], output: Path) -> str:
    """Writes a bundle anew with some parts exchanged; what is kept is copied in pieces.

    Args:
        contents: The bundle as it is.
        parts: What is new.
        output: Where to write; not the bundle itself.

    Returns:
        The sha256 of what was written.

    Raises:
        ArtifactError: Its header would be longer than LiteRT-LM reads.
    """
    from litert_lm_builder import litertlm_core as core

    plan = _plan(contents, parts)
    first = core.HEADER_BEGIN_BYTE_OFFSET
    end = first + len(_header(plan, contents.system, ()))
    if end > sections.LONGEST_HEADER:
        raise ArtifactError(
            f"{contents.path} would have a header of {end} bytes, and LiteRT-LM reads"
            f" {sections.LONGEST_HEADER}",
            remedy="make the bundle anew with `edgezoo bundle`",
        )
    digests = []
    offset = end
    with contents.path.open("rb") as source, output.open("wb") as target:
        for entry in plan:
            entry.begin = -(-offset // core.BLOCK_SIZE) * core.BLOCK_SIZE
            target.seek(entry.begin)
            digests.append(_copy(entry.content, source, target))
            entry.end = offset = target.tell()
        target.seek(0)
        target.write(contents.preamble)
        target.write(end.to_bytes(first - len(contents.preamble), "little"))
        target.write(_header(plan, contents.system, digests))
    with output.open("rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


def _plan(contents: Contents, parts: Sequence[Part]) -> list[_Entry]:
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    def entry(part: Part, items: tuple[Item, ...] = ()) -> _Entry:
        code = getattr(schema.AnySectionDataType, part.kind)
        return _Entry(code, items, _compressed(part))

    plan = [entry(part) for part in parts if not part.replaces]
    places = {part.replaces[0].index: part for part in parts if part.replaces}
    gone = {section.index for part in parts for section in part.replaces}
    for section in contents.sections:
        if section.index in places:
            plan.append(entry(places[section.index], section.items))
        elif section.index not in gone:
            plan.append(_Entry(section.code, section.items, section))
    return plan


def _compressed(part: Part) -> bytes:
    if part.kind != sections.HUGGINGFACE:
        return part.content
    return len(part.content).to_bytes(8, "little") + zlib.compress(part.content)


def _header(plan: Sequence[_Entry], system: Sequence[Item], digests: Sequence[str]) -> bytes:
    # What a cache holds of the old file is not to be taken for the new one's.
    name = header.uuid_of(digests)
    return header.pack(plan, [name if item.key == "uuid" else item for item in system])


def _copy(content: Section | bytes, source: IO[bytes], target: IO[bytes]) -> str:
    """Writes a section's content; returns its sha256."""
    digest = hashlib.sha256()
    for piece in (content,) if isinstance(content, bytes) else _pieces(source, content):
        digest.update(piece)
        target.write(piece)
    return digest.hexdigest()


def _pieces(source: IO[bytes], section: Section) -> Iterator[bytes]:
    source.seek(section.begin)
    left = section.size_bytes
    while left and (piece := source.read(min(left, _CHUNK))):
        left -= len(piece)
        yield piece
