"""The file that is examined: its graph, its metadata, its tokenizer, and its source's texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgezoo_core import decoder as decoders
from edgezoo_core import slots as slot_counts
from edgezoo_core.bundle import metadata as metadatas
from edgezoo_core.bundle import prompts, sections, vocabulary
from edgezoo_core.bundle.prompts import Prompts
from edgezoo_core.bundle.sections import Contents
from edgezoo_core.bundle.vocabulary import Vocabulary
from edgezoo_core.contract.report import NotCheckedError
from edgezoo_core.contract.tokens import Bundled
from edgezoo_core.decoder import EntryPoint, KvCache
from edgezoo_core.errors import ArtifactError
from edgezoo_core.types import TensorSpec

#: Names under which LiteRT-LM looks for a signature's tensors.
TOKENS = ("tokens", "token_ids")
EMBEDDINGS = ("embeddings",)
POSITIONS = ("input_pos", "positions")
MASKS = ("mask", "attn_mask")
LOCAL_MASKS = ("local_mask", "attn_mask_local", "local_attn_mask")
#: Beginnings of the names of key and value caches, in the order in which it looks for them.
CACHES = (("kv_cache_k_", "kv_cache_v_"), ("k_cache_", "v_cache_"))


@dataclass(frozen=True)
class Subject:
    """A file to examine; what it lacks raises `NotCheckedError` where a rule asks for it.

    Attributes:
        path: A .tflite or .litertlm.
        bundle: The .litertlm's sections; None for a .tflite.
        texts: Folder with the source's tokenizer and chat template, if it is known.
        signatures: Of the language model, in the file's order; None where the bundle has none.
        is_dynamic: Whether a signature's shapes are settled at run time only.
    """

    path: Path
    bundle: Contents | None
    texts: Path | None
    signatures: Mapping[str, EntryPoint] | None = field(repr=False)
    is_dynamic: bool

    @property
    def contents(self) -> Contents:
        """The bundle's sections."""
        if self.bundle is None:
            raise NotCheckedError("a .tflite has no metadata and no tokenizer: bundle it")
        return self.bundle

    @property
    def decode(self) -> EntryPoint:
        """The signature that makes a token."""
        if "decode" not in self.entry_points:
            raise NotCheckedError("there is no signature decode")
        return self.entry_points["decode"]

    @property
    def prefills(self) -> list[EntryPoint]:
        """The signatures that read a prompt, in the file's order."""
        found = [s for name, s in self.entry_points.items() if name.startswith("prefill")]
        if not found:
            raise NotCheckedError("there is no signature that begins with prefill")
        return found

    @property
    def entry_points(self) -> Mapping[str, EntryPoint]:
        """The signatures."""
        if self.signatures is None:
            raise NotCheckedError("the bundle has no language model")
        return self.signatures

    @property
    def cache_names(self) -> tuple[str, str]:
        """Beginnings of the names of key and value caches."""
        for names in CACHES:
            if any(name.startswith(names[0]) for name in self.decode.inputs):
                return names
        raise NotCheckedError("decode has no key caches")

    @property
    def positions(self) -> str:
        """Name of the input with the positions, which prefill shares with decode."""
        name = first_of(POSITIONS, self.decode.inputs)
        if name is None:
            raise NotCheckedError(f"decode has no input {' or '.join(POSITIONS)}")
        return name

    def prefill_length(self, prefill: EntryPoint) -> int:
        """Returns how many tokens a signature reads, as LiteRT-LM tells it."""
        if self.positions not in prefill.inputs:
            raise NotCheckedError(f"{prefill.name} has no input {self.positions}")
        shape = prefill.inputs[self.positions].shape
        if not shape or len(shape) > 2:
            raise NotCheckedError(f"{self.positions} of {prefill.name} has shape {list(shape)}")
        return shape[-1]

    @cached_property
    def cache(self) -> KvCache:
        """The KV cache as it really is."""
        self.refuse_dynamic()
        short = dict(zip(self.cache_names, CACHES[0], strict=True))
        inputs: dict[str, TensorSpec] = {}
        for name, tensor in self.decode.inputs.items():
            stem = next((s for s in short if name.startswith(s)), None)
            standard = short[stem] + name.removeprefix(stem) if stem else name
            inputs["mask" if name in MASKS else standard] = tensor
        missing = {f"{name}0" for name in CACHES[0]} - inputs.keys()
        renamed = EntryPoint("decode", self.decode.graph, inputs, self.decode.outputs)
        found = None if missing else decoders.kv_cache(renamed)
        if found is None or found.slots != self.slots:
            raise NotCheckedError("the shapes of the KV cache fit no layout that is known")
        return found

    @property
    def mask(self) -> TensorSpec | None:
        """Decode's mask, if that is an input."""
        name = first_of(MASKS, self.decode.inputs)
        return self.decode.inputs[name] if name else None

    @property
    def capacity(self) -> int:
        """How many tokens the KV cache holds on the device."""
        return slot_counts.used(self.slots) if self.mask else self.slots

    @property
    def slots(self) -> int:
        """How many slots the KV cache really has."""
        self.refuse_dynamic()
        if self.mask and self.mask.shape:
            return self.mask.shape[-1]
        key, value = (
            next((t.shape for n, t in self.decode.inputs.items() if n.startswith(stem)), ())
            for stem in self.cache_names
        )
        if len(key) != 4 or len(value) != 4:
            raise NotCheckedError("the KV cache does not have four dimensions")
        # Heads are fewer than slots, whichever of the two comes first.
        return max(key[1:3]) if key == value else key[2]

    @property
    def vocabulary_size(self) -> int:
        """Ids V that decode's logits tell apart."""
        logits = self.decode.outputs.get("logits")
        if logits is None or not logits.shape:
            raise NotCheckedError("decode has no output logits")
        return logits.shape[-1]

    @cached_property
    def llm(self) -> Any:
        """The LlmMetadata."""
        found = self.contents.message(sections.LLM_METADATA)
        if found is None:
            raise NotCheckedError("the bundle has no LlmMetadata")
        return found

    @cached_property
    def executor(self) -> Any | None:
        """The ExecutorMetadata; None where there is none."""
        return self.bundle.message(sections.EXECUTOR_METADATA) if self.bundle else None

    @cached_property
    def tokenizer(self) -> Bundled:
        """The tokenizer that the bundle carries."""
        found = self.contents.tokenizers()
        if not found:
            raise NotCheckedError("the bundle has no tokenizer")
        try:
            return Bundled(found[0].kind, self.contents.read(found[0]))
        except ArtifactError as e:
            raise NotCheckedError("the bundle's tokenizer cannot be loaded") from e

    @cached_property
    def source(self) -> Vocabulary:
        """The source's tokenizer."""
        try:
            return vocabulary.load(self._texts)
        except ArtifactError as e:
            raise ArtifactError(
                e.message, remedy="pass --source with a folder that holds a sound tokenizer"
            ) from e

    @cached_property
    def source_prompts(self) -> Prompts:
        """What a bundle of the source would say about prompts."""
        return prompts.find(self.source.chat)

    @cached_property
    def generation(self) -> Mapping[str, Any]:
        """The source's generation_config.json."""
        return metadatas.read_json(self._texts / "generation_config.json")

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids at which the source's answers end."""
        configs = (self.generation, metadatas.read_json(self._texts / "config.json"))
        return metadatas.stop_tokens(self.source, self.source_prompts, configs)

    def refuse_dynamic(self) -> None:
        """Raises `NotCheckedError` where the file does not say how long its cache is."""
        if self.is_dynamic:
            raise NotCheckedError("the shapes are settled at run time")

    @property
    def _texts(self) -> Path:
        # The lack of a bundle is told first: naming a source would not help.
        if self.contents and self.texts:
            return self.texts
        raise NotCheckedError("the source is not known: pass --source")


def open_subject(path: Path, texts: Path | None) -> Subject:
    """Opens a .tflite or .litertlm; no weight is read.

    Raises:
        ArtifactError: It is neither, or damaged.
    """
    if not sections.is_bundle(path):
        return Subject(path, None, texts, *_graph(path, 0))
    contents = sections.open_bundle(path)
    models = contents.models()
    if not models:
        return Subject(path, contents, texts, None, False)
    # Of several, LiteRT-LM takes the last.
    return Subject(path, contents, texts, *_graph(path, models[-1].begin))


def first_of(names: tuple[str, ...], tensors: Mapping[str, TensorSpec]) -> str | None:
    """Returns which of some names a signature has; None if it has none of them."""
    return next((name for name in names if name in tensors), None)


def _graph(path: Path, offset: int) -> tuple[Mapping[str, EntryPoint], bool]:
    try:
        with decoders.mapped(path, offset) as model:
            return decoders.signatures(model), any(_has_free_dimension(t) for t in _tensors(model))
    except AttributeError as e:  # a name or a graph that is not there
        raise ArtifactError(
            f"{path} is no sound .tflite file: {e}", remedy="obtain the file again"
        ) from e


def _tensors(model: Any) -> Iterator[Any]:
    for index in range(model.SignatureDefsLength()):
        entry = model.SignatureDefs(index)
        graph = model.Subgraphs(entry.SubgraphIndex())
        for i in range(entry.InputsLength()):
            yield graph.Tensors(entry.Inputs(i).TensorIndex())


def _has_free_dimension(tensor: Any) -> bool:
    return any(tensor.ShapeSignature(i) < 0 for i in range(tensor.ShapeSignatureLength()))
