"""Puts sections into one .litertlm, the same bytes for the same content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgezoo_core.bundle import header
from edgezoo_core.bundle.sections import Item, open_bundle
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

    contents = open_bundle(path)
    digests = [_sha256(path, s.begin, s.end) for s in contents.sections]
    system = [header.uuid_of(digests), Item("creation_timestamp", _TIME, "String")]
    packed = header.pack(contents.sections, system)
    first = core.HEADER_BEGIN_BYTE_OFFSET
    length = (first + len(packed)).to_bytes(first - len(contents.preamble), "little")
    with path.open("rb+") as file:
        begin = contents.preamble + length + packed
        file.write(begin.ljust(contents.sections[0].begin, b"\0"))
    return digests[-1]


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
