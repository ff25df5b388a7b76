"""Every parser that is fed by strangers, as a function of bytes.

Each target feeds a parser as the product does and takes two outcomes for sound: it returns, or it
raises an `EdgezooError` whose words a terminal can show. Whatever else comes out is a finding.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from edgezoo_core.errors import EdgezooError

Target = Callable[[bytes], None]

#: No input is longer: what a parser does with megabytes of text is tested apart.
LONGEST = 1 << 16


class Finding(Exception):  # noqa: N818
    """A parser did what it must not."""


@cache
def _folder() -> Path:
    """Returns a folder of this process, in memory where there is such a disk."""
    memory = Path("/dev/shm")  # noqa: S108
    parent = memory if os.access(memory, os.W_OK) else None
    made = tempfile.TemporaryDirectory(prefix="edgezoo-fuzz-", dir=parent)
    atexit.register(made.cleanup)
    return Path(made.name)


def _put(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@contextmanager
def _refusing() -> Iterator[None]:
    """Lets an `EdgezooError` pass whose words are whole and harmless."""
    try:
        yield
    except EdgezooError as e:
        shown = f"{e.message}{e.remedy}"
        if not e.message or not e.remedy:
            raise Finding("an error without message or remedy") from e
        shown.encode()


def safetensors(data: bytes) -> None:
    """A .safetensors file."""
    from edgezoo_core.tensor_files import open_safetensors

    with _refusing():
        open_safetensors(_put("model.safetensors", data), "model.safetensors")


def index(data: bytes) -> None:
    """model.safetensors.index.json, alone and beside a shard."""
    from edgezoo_core import checkpoint

    path = _put("indexed/model.safetensors.index.json", data)
    _put("indexed/a.safetensors", _SHARD)
    with _refusing():
        checkpoint.index_shards(path)
    with _refusing():
        checkpoint.open_folder(path.parent)


def pytorch(data: bytes) -> None:
    """A PyTorch file: a zip, or a bare pickle."""
    from edgezoo_core.pytorch_files import open_pytorch

    with _refusing():
        open_pytorch(_put("pytorch_model.bin", data), "pytorch_model.bin")


def config(data: bytes) -> None:
    """config.json, read as the three families read it, and generation_config.json."""
    from edgezoo_core import checkpoint
    from edgezoo_core.bundle import metadata
    from edgezoo_core.config import Config

    path = _put("config/config.json", data)
    with _refusing():
        found = checkpoint.read_config(path.parent) or {}
        for module in _architectures():
            with _refusing():
                read = Config(found, "config.json")
                module.model_config(read)
                json.dumps([read.reading(), read.account()])
    with _refusing():
        metadata.sampling(metadata.read_json(path), 300)


def authored(data: bytes) -> None:
    """config.json, authored by the three families."""
    from edgezoo_core import checkpoint, model
    from edgezoo_core.types import Model

    path = _put("authored/config.json", data)
    with _refusing():
        found = checkpoint.read_config(path.parent) or {}
        for plugin in _families():
            with _refusing():
                model.author(plugin, Model(plugin.plugin.family, None, "./model"), found)


def cards(data: bytes) -> None:
    """A plugin's models.toml."""
    from edgezoo_core import cards as parser

    path = _put("models.toml", data)
    with _refusing():
        parser.read_family(path)


def registry(data: bytes) -> None:
    """The index of models."""
    from edgezoo_core import registry as parser

    with _refusing():
        parser.read_index(_put("registry.toml", data))


def recipe(data: bytes) -> None:
    """A recipe file, and what it means for a model of two layers."""
    from edgezoo_core import recipe as recipes

    with _refusing():
        found = recipes.read(_put("recipe.toml", data))
        repr(found)


def adapter(data: bytes) -> None:
    """adapter_config.json of a LoRA adapter."""
    from edgezoo_core import adapter_files

    with _refusing():
        found = adapter_files.parse_config(_put("adapter_config.json", data), "./adapter")
        adapter_files.rank_and_scaling(found, "model.layers.0.self_attn.q_proj")


def adapter_weights(data: bytes) -> None:
    """adapter_model.safetensors of a LoRA adapter."""
    from edgezoo_core import adapters

    folder = _put("adapter/adapter_model.safetensors", data).parent
    _put("adapter/adapter_config.json", b'{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    with _refusing():
        adapters.open_adapter(folder)


def manifest(data: bytes) -> None:
    """A manifest beside a file, and whatever reads its fields."""
    from edgezoo_core import artifact, chat, decoder, inspection, text_sources
    from edgezoo_core.contract import manifest as contracts

    path = _put("converted/model.tflite", _tflite())
    _put("converted/model.manifest.json", data)
    with _refusing():
        contracts.beside(path)
    with _refusing():
        inspection.inspect(path)
    with _refusing():
        found = artifact.read(path)
        for reader in (decoder.read, chat.suited, chat.bundle_of, text_sources.text_folder):
            with _refusing():
                reader(found)


def tflite(data: bytes) -> None:
    """A .tflite: its signatures, its contract, its account."""
    from edgezoo_core import artifact, contract, decoder, inspection

    path = _put("model.tflite", data)
    with _refusing():
        decoder.read(artifact.read(path))
    with _refusing():
        contract.check(path).to_json()
    with _refusing():
        inspection.inspect(path).to_json()


def litertlm(data: bytes) -> None:
    """A .litertlm: header, sections, metadata, tokenizer. The input is folded."""
    from edgezoo_core import artifact, contract, inspection
    from fuzz import folding

    path = _put("model.litertlm", folding.unfold(data))
    with _refusing():
        artifact.read(path)
    with _refusing():
        contract.check(path).to_json()
    with _refusing():
        inspection.inspect(path).to_json()


def cache_record(data: bytes) -> None:
    """The record of an entry of the cache; damage is a miss."""
    from edgezoo_core.cache import Cache
    from edgezoo_core.cache.entry import RECORD

    root = _folder() / "cache"
    _put(f"cache/trace/{_KEY}/{RECORD}", data)
    found = Cache(root, 1 << 20)
    for entry in found.list():
        json.dumps({"parts": entry.parts, "about": entry.about})
    found.verify()


def template(data: bytes) -> None:
    """A chat template, as the device renders it and as transformers does."""
    from edgezoo_core.bundle import rendering
    from edgezoo_core.bundle.turns import RefusedError

    turns = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes"})
    with suppress(RefusedError):
        rendering.render(data.decode("utf-8", "replace"), turns, is_asked=True)


def tokenizer_json(data: bytes) -> None:
    """tokenizer.json, as it is in a bundle."""
    from edgezoo_core.bundle import sections
    from edgezoo_core.contract.tokens import Bundled

    with _refusing():
        found = Bundled(sections.HUGGINGFACE, data)
        found.encode("Hello there! 12")
        found.text_of(0)
        _ = found.prepended


def sentencepiece(data: bytes) -> None:
    """tokenizer.model, as it is in a bundle."""
    from edgezoo_core.bundle import sections
    from edgezoo_core.contract.tokens import Bundled

    with _refusing():
        found = Bundled(sections.SENTENCEPIECE, data)
        found.encode("Hello there! 12")
        found.text_of(0)


TARGETS: Mapping[str, Target] = {
    target.__name__: target
    for target in (
        safetensors,
        index,
        pytorch,
        config,
        authored,
        cards,
        registry,
        recipe,
        adapter,
        adapter_weights,
        manifest,
        tflite,
        litertlm,
        cache_record,
        template,
        tokenizer_json,
        sentencepiece,
    )
}

_KEY = hashlib.sha256(b"{}").hexdigest()
_SHARD_HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
_SHARD = len(_SHARD_HEADER).to_bytes(8, "little") + _SHARD_HEADER + bytes(4)


@cache
def _tflite() -> bytes:
    from fuzz import samples

    return samples.tflite()


@cache
def _families() -> list[Any]:
    from edgezoo_core import plugins

    found = [p for p in plugins.discover() if p.family in ("gemma", "tinyllama", "phi2")]
    return [plugins.load(p) for p in found if p.is_usable]


@cache
def _architectures() -> list[Any]:
    import importlib

    names = ("edgezoo_gemma.gemma", "edgezoo_tinyllama.tinyllama", "edgezoo_phi2.phi2")
    return [importlib.import_module(name) for name in names]
