"""From a .tflite and its source's texts to a .litertlm that LiteRT-LM runs as it is."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core import artifact, partial
from edgezoo_core import decoder as decoders
from edgezoo_core.artifact import BUNDLE_SUFFIX, Artifact
from edgezoo_core.bundle import metadata, packing, prompts, vocabulary
from edgezoo_core.bundle.prompts import Prompts
from edgezoo_core.bundle.turns import Turn
from edgezoo_core.bundle.vocabulary import Form, Vocabulary
from edgezoo_core.decoder import Decoder
from edgezoo_core.errors import ArtifactError
from edgezoo_core.types import Progress, silent

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was written.

    Attributes:
        path: The .litertlm.
        size_bytes: Its length.
        sha256: Of the whole file.
        tokenizer: The form in which it carries the tokenizer.
        prompts: How it renders conversations.
        start_token: Id before every prompt, None if there is none.
        stop_tokens: Ids that end an answer, ascending.
        max_num_tokens: Slots of the KV cache.
    """

    path: Path
    size_bytes: int
    sha256: str
    tokenizer: Form
    prompts: Prompts
    start_token: int | None
    stop_tokens: tuple[int, ...]
    max_num_tokens: int

    def record(self, folder: Path) -> dict[str, Any]:
        """Returns what the manifest in a folder says about the bundle."""
        return {
            "file": Path(os.path.relpath(self.path, folder)).as_posix(),
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "tokenizer": self.tokenizer,
            "prompt_templates": _prompts_record(self.prompts),
            "start_token": self.start_token,
            "stop_tokens": list(self.stop_tokens),
            "max_num_tokens": self.max_num_tokens,
        }


def default_path(converted: Path, output: Path | None = None) -> Path:
    """Returns where the bundle of a .tflite goes.

    Args:
        converted: The .tflite.
        output: A folder, or a path that ends in .litertlm; None puts it beside the .tflite.
    """
    if output is None:
        return converted.with_suffix(BUNDLE_SUFFIX)
    if output.suffix == BUNDLE_SUFFIX:
        return output
    return output / converted.with_suffix(BUNDLE_SUFFIX).name


def refuse_existing(path: Path) -> None:
    """Checks, before any work, that an output is free.

    Raises:
        ArtifactError: It is there already.
    """
    if path.exists():
        raise ArtifactError(
            f"{path} exists", remedy="pass --force to replace it, or another --output"
        )


def build(converted: Artifact, texts: Path, output: Path, progress: Progress = silent) -> Bundle:
    """Writes a bundle, and records it in the artifact's manifest if there is one.

    Args:
        converted: The .tflite with its manifest.
        texts: The folder with the source's tokenizer, config.json and generation_config.json.
        output: The .litertlm to write; what stands there is replaced.
        progress: Told of each stage.

    Raises:
        ArtifactError: The file, its tokenizer, or the output will not do; what stood at `output`
            before is whole.
    """
    decoder = decoders.read(converted)
    progress("reading the tokenizer")
    words = vocabulary.load(texts)
    _refuse_foreign(words, decoder, converted.path, texts)
    found = _find_prompts(words, texts)
    generation = metadata.read_json(texts / "generation_config.json")
    configs = (generation, metadata.read_json(texts / "config.json"))
    stop = metadata.stop_tokens(words, found, configs)
    drawn = metadata.sampling(generation, decoder.vocabulary)
    about = metadata.llm(words, found, stop, drawn, decoder)
    with partial.files(output.resolve()) as (made, _):
        packed = _write(converted, words, about, metadata.executor(decoder.cache), made, progress)
        bundle = Bundle(
            output,
            packed.size_bytes,
            packed.sha256,
            words.form,
            found,
            words.start_token,
            stop,
            decoder.cache.capacity,
        )
        if converted.manifest is None:
            partial.place(made, output.resolve())
        else:
            manifest = {k: v for k, v in converted.manifest.items() if k != artifact.IN_DOUBT}
            manifest["bundle"] = bundle.record(converted.path.parent)
            artifact.publish(made, output.resolve(), manifest, beside=converted.path)
    return bundle


def _find_prompts(words: Vocabulary, texts: Path) -> Prompts:
    found = prompts.find(words.chat)
    if words.chat and found.kind == "none":
        logger.warning(
            "the chat template in %s can be put neither as text around turns nor as a template that"
            " LiteRT-LM renders: the bundle has none, and takes prompts as they are",
            texts,
        )
    return found


def _write(
    converted: Artifact,
    words: Vocabulary,
    llm_metadata: bytes,
    executor_metadata: bytes,
    output: Path,
    progress: Progress,
) -> packing.Packed:
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        sections = packing.Sections(
            scratch / "llm_metadata.pb",
            scratch / "executor_metadata.pb",
            words.file(scratch),
            words.form,
            converted.path,
        )
        sections.llm_metadata.write_bytes(llm_metadata)
        sections.executor_metadata.write_bytes(executor_metadata)
        packed = packing.pack(sections, output, progress)
        recorded = (converted.manifest or {}).get("artifact", {}).get("sha256")
        if recorded not in (None, packed.model_sha256):
            raise ArtifactError(
                f"{converted.path} has sha256 {packed.model_sha256}, its manifest says {recorded}",
                remedy="the file is damaged: convert the model again",
            )
    return packed


def _refuse_foreign(words: Vocabulary, decoder: Decoder, path: Path, texts: Path) -> None:
    if words.size > decoder.vocabulary:
        raise ArtifactError(
            f"the tokenizer in {texts} has {words.size} ids, {path} knows {decoder.vocabulary}",
            remedy="pass --tokenizer with the tokenizer of the model's source",
        )


def _prompts_record(found: Prompts) -> Mapping[str, Any]:
    turns = found.turns
    if turns is None:
        return {"kind": found.kind}

    def affixes(turn: Turn | None) -> Mapping[str, str] | None:
        return {"prefix": turn.prefix, "suffix": turn.suffix} if turn else None

    roles = {"user": turns.user, "model": turns.model, "system": turns.system}
    return {"kind": found.kind, **{role: affixes(turn) for role, turn in roles.items()}}
