"""A checkpoint on disk: its config, its files, and its tensors, read lazily."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core import paths, texts
from edgezoo_core.errors import CheckpointError, listing, nearest
from edgezoo_core.pytorch_files import open_pytorch
from edgezoo_core.tensor_files import StoredTensor, open_safetensors
from edgezoo_core.types import Progress, silent

SAFETENSORS_INDEX = "model.safetensors.index.json"
PYTORCH_INDEX = "pytorch_model.bin.index.json"
PYTORCH_SUFFIXES = (".bin", ".pt", ".ckpt")
#: Files beside the weights that a trainer leaves and that hold no model.
NOT_WEIGHTS = ("optimizer", "scheduler", "training_args", "rng_state", "trainer_state")
#: Tensors that checkpoints carry and that hold nothing learned.
HARMLESS = re.compile(r"(?:^|\.)(?:rotary_emb\.inv_freq|freqs_cis|local_freqs_cis|masked_bias)$")
#: Part -> prefix of its tensors in the layout that transformers' Llama began with and most families
#: keep; `{}` stands for the layer. Parts are fields of litert-torch's TensorNames.
HUB_NAMES: Mapping[str, str] = {
    "embedding": "model.embed_tokens",
    "attn_query_proj": "model.layers.{}.self_attn.q_proj",
    "attn_key_proj": "model.layers.{}.self_attn.k_proj",
    "attn_value_proj": "model.layers.{}.self_attn.v_proj",
    "attn_output_proj": "model.layers.{}.self_attn.o_proj",
    "ff_gate_proj": "model.layers.{}.mlp.gate_proj",
    "ff_up_proj": "model.layers.{}.mlp.up_proj",
    "ff_down_proj": "model.layers.{}.mlp.down_proj",
    "pre_attn_norm": "model.layers.{}.input_layernorm",
    "post_attn_norm": "model.layers.{}.post_attention_layernorm",
    "final_norm": "model.norm",
    "lm_head": "lm_head",
}
#: Tokenizer and text files that go with a checkpoint; recorded, and read by `edgezoo run`.
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that was read: name inside the checkpoint, bytes, sha256 in hex."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a model in it.

    Attributes:
        source: `org/name@commit`, or the folder's path.
        folder: Where the files are.
        config: The parsed config.json, None where there is none.
        tensors: All tensors by name.
        files: Names of the files that belong to it, config and tokenizer included.
    """

    source: str
    folder: Path
    config: Mapping[str, Any] | None
    tensors: Mapping[str, StoredTensor]
    files: tuple[str, ...]

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names of the files that hold tensors, in the order of `files`; the rest is text."""
        holders = {tensor.file for tensor in self.tensors.values()}
        return tuple(name for name in self.files if name in holders)

    def tensor(self, name: str) -> StoredTensor:
        """Returns a tensor by name.

        Raises:
            CheckpointError: There is none; the message names the nearest.
        """
        if name not in self.tensors:
            guess = nearest(name, self.tensors)
            raise CheckpointError(
                f"{self.source}: no tensor {name}" + (f" (nearest: {guess})" if guess else ""),
                remedy="correct the plugin's tensor names for this checkpoint",
            )
        return self.tensors[name]

    def hash_files(self, progress: Progress = silent) -> tuple[SourceFile, ...]:
        """Reads every file once and returns its size and sha256."""
        progress("hashing the checkpoint")
        return tuple(
            SourceFile(name, (self.folder / name).stat().st_size, sha256(self.folder / name))
            for name in self.files
        )


def sha256(path: Path) -> str:
    """Returns the sha256 of a file in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def git_sha1(content: bytes) -> str:
    """Returns the name that git, and so the hub, gives to a small file's content, in hex."""
    head = b"blob %d\0" % len(content)
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


def read_config(folder: Path) -> Mapping[str, Any] | None:
    """Reads a folder's config.json, or returns None where there is none.

    Raises:
        CheckpointError: It is not a JSON object.
    """
    path = folder / "config.json"
    return _read_json(path, texts.CONFIG_BYTES) if path.is_file() else None


def weight_files(names: Iterable[str]) -> tuple[str | None, tuple[str, ...]]:
    """Chooses the files that hold the weights: safetensors before PyTorch, never both.

    Args:
        names: All file names at the top of a folder or repo.

    Returns:
        The index and no files, where an index says which they are; else None and the one file.

    Raises:
        CheckpointError: There are none, or several without an index.
    """
    present = set(names)
    kinds = (
        (SAFETENSORS_INDEX, "model.safetensors", (".safetensors",)),
        (PYTORCH_INDEX, "pytorch_model.bin", PYTORCH_SUFFIXES),
    )
    for index, usual, suffixes in kinds:
        if index in present:
            return index, ()
        if usual in present:
            return None, (usual,)
        found = sorted(
            n
            for n in present
            if n.endswith(suffixes) and "/" not in n and not n.startswith(NOT_WEIGHTS)
        )
        if len(found) == 1:
            return None, (found[0],)
        if found:
            raise CheckpointError(
                f"several weight files and no {index}: {listing(found)}",
                remedy=f"add the index, or keep one file, named {usual}",
            )
    raise CheckpointError(
        "no weights: neither *.safetensors nor " + ", ".join(f"*{s}" for s in PYTORCH_SUFFIXES),
        remedy="name a folder or repo that holds a model",
    )


def index_shards(index: Path) -> dict[str, str]:
    """Reads an index: tensor name -> name of the file that holds it.

    Raises:
        CheckpointError: It is malformed, or names a path outside of the folder.
    """
    weight_map = _read_json(index, texts.INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map", remedy="obtain the checkpoint again")
    for file in weight_map.values():
        if not paths.is_inner(file):
            raise CheckpointError(
                f"{index} names {file!r}, which is outside of the checkpoint",
                remedy="do not use this checkpoint: its index was tampered with",
            )
    return weight_map


def open_folder(folder: Path, source: str | None = None) -> Checkpoint:
    """Opens the checkpoint in a folder, reading headers only.

    Raises:
        CheckpointError: There are no weights, a file is truncated, empty or garbage, the index and
            the shards disagree, a link leads out of the folder, or a PyTorch file holds more than
            tensors.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder", remedy="check the path")
    if not paths.is_written(str(folder)):
        raise CheckpointError(
            f"{folder}: a manifest cannot hold such a path",
            remedy="rename the folder: without control characters, as UTF-8",
        )
    names = sorted(str(p.relative_to(folder)) for p in folder.iterdir() if p.is_file())
    try:
        index, files = weight_files(names)
    except CheckpointError as e:
        raise CheckpointError(f"{folder}: {e.message}", remedy=e.remedy) from e
    words = [n for n in names if n in TEXT_FILES or n == "config.json"]
    refuse_links(folder, (*words, *([index] if index else []), *files))
    tensors: dict[str, StoredTensor] = {}
    if index:
        expected = index_shards(folder / index)
        files = tuple(sorted(set(expected.values())))
        _check_shards_exist(folder, index, files)
        refuse_links(folder, files)
        for file in files:
            shard = _open_weights(folder, file)
            named = {n for n, f in expected.items() if f == file}
            _compare_shard(folder / index, file, named, shard.keys())
            tensors.update(shard)
    else:
        tensors.update(_open_weights(folder, files[0]))
    return Checkpoint(
        source=source or str(folder),
        folder=folder,
        config=read_config(folder),
        tensors=tensors,
        files=(*words, *([index] if index else []), *files),
    )


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Checks that files of a folder are in it, and no links to elsewhere.

    Raises:
        CheckpointError: One leads out of it, and not to the hub's cache to which it belongs.
    """
    outside = [name for name in names if paths.leaves(folder, name)]
    if outside:
        raise CheckpointError(
            f"{folder}: links lead out of the folder: {listing(outside)}",
            remedy="copy the files into it, or name the folder where they are",
        )


def _check_shards_exist(folder: Path, index: str, files: Iterable[str]) -> None:
    missing = [f for f in files if not (folder / f).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {index} names files that are not there: {listing(missing)}",
            remedy="obtain the missing shards",
        )


def _compare_shard(index: Path, file: str, expected: set[str], found: Iterable[str]) -> None:
    found = set(found)
    if expected == found:
        return
    absent, extra = sorted(expected - found), sorted(found - expected)
    parts = []
    if absent:
        parts.append(f"the index names tensors that it lacks: {listing(absent)}")
    if extra:
        parts.append(f"it holds tensors that the index lacks: {listing(extra)}")
    raise CheckpointError(
        f"{index.parent}: {file} does not agree with {index.name}: {'; '.join(parts)}",
        remedy="obtain index and shards from the same revision",
    )


def _open_weights(folder: Path, file: str) -> dict[str, StoredTensor]:
    path = folder / file
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty", remedy="obtain the file again")
    if file.endswith(".safetensors"):
        return open_safetensors(path, file)
    return open_pytorch(path, file)


def _read_json(path: Path, limit_bytes: int) -> dict[str, Any]:
    try:
        value = texts.read_json(path, limit_bytes)
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror or e}", remedy="check the file") from e
    except ValueError as e:
        raise CheckpointError(f"{path} is not JSON: {e}", remedy="obtain the file again") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is no JSON object", remedy="obtain the file again")
    return value
