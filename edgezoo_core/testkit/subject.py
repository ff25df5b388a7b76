"""The plugin that is examined, and what the checks make of it, each thing once."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edgezoo_core import model, parity, plugins
from edgezoo_core import recipe as recipes
from edgezoo_core.cards import FamilyCard
from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.config import Config
from edgezoo_core.hooks import LoadedPlugin
from edgezoo_core.model import AuthoredModel
from edgezoo_core.plugins import Plugin
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.testkit import samples
from edgezoo_core.testkit.check import CheckFailedError
from edgezoo_core.testkit.converting import Converted, File
from edgezoo_core.testkit.samples import Reference, Sample
from edgezoo_core.types import Model, QuantPlan

#: Slots of a small model's KV cache, unless the family claims a long context.
SHORT_CACHE = 32
#: Tokens over which a module is held against its reference: beyond the windows.
MODULE_TOKENS = 64
#: Tokens that a file reads, within the short cache and beyond the windows.
FILE_TOKENS = 30
#: How many of them before the first logits: two chunks of the longest prefill, and one by decode.
PREFILLED = 17


class Subject:
    """A plugin and its small models; one for each architecture of its card.

    Args:
        plugin: As it was discovered.
        folder: Where small models and files go.
    """

    def __init__(self, plugin: Plugin, folder: Path) -> None:
        self.plugin = plugin
        self._folder = folder
        self._authored: dict[str, AuthoredModel] = {}
        self._modules: dict[str, Any] = {}
        self._expected: dict[str, torch.Tensor] = {}
        self._converted: dict[tuple[str, SignatureOptions], Converted] = {}
        self._files: dict[tuple[str, SignatureOptions, str], File] = {}

    @property
    def card(self) -> FamilyCard:
        """Its card."""
        if self.plugin.card is None:
            raise CheckFailedError(self.plugin.reason)
        return self.plugin.card

    @cached_property
    def hooks(self) -> LoadedPlugin:
        """Its hooks."""
        return plugins.load(self.plugin)

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """What makes small models, by architecture of the card."""
        return tuple(self._reference(name) for name in self.card.architectures)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """A small model of each architecture."""
        return tuple(r.make(r.fields, self.new_folder()) for r in self.references)

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of the recipes of all its models, each once."""
        named = (name for card in self.card.models.values() for name in card.recipes)
        return tuple(dict.fromkeys(named))

    @property
    def options(self) -> SignatureOptions:
        """The form that its first card takes by default, with few short signatures."""
        claimed = self.card.conformance.capabilities
        card = next(iter(self.card.models.values()))
        return replace(
            card.signatures,
            prefill_lengths=(4, 8) if "prefill_lengths" in claimed else (8,),
            kv_cache_length=samples.CONTEXT if "long_context" in claimed else SHORT_CACHE,
        )

    def model(self, checkpoint: Checkpoint) -> Model:
        """Returns the first argument of every hook."""
        return Model(self.plugin.family, None, checkpoint.source)

    def build(self, checkpoint: Checkpoint, fields: Mapping[str, Any]) -> AuthoredModel:
        """Authors a model afresh and maps its weights."""
        return model.build(self.hooks, self.model(checkpoint), checkpoint, fields)

    def authored(self, sample: Sample) -> AuthoredModel:
        """Returns a sample as it was authored, its parameters on meta."""
        if sample.architecture not in self._authored:
            self._authored[sample.architecture] = self.build(sample.checkpoint, sample.fields)
        return self._authored[sample.architecture]

    def compute(self, sample: Sample, tokens: torch.Tensor) -> torch.Tensor:
        """Runs the authored module over tokens, int32 [1, T], in float32.

        Returns:
            logits: float32 [T, V].
        """
        if sample.architecture not in self._modules:
            self._modules[sample.architecture] = self.materialize(sample)
        return run(self._modules[sample.architecture], tokens)

    def materialize(self, sample: Sample) -> torch.nn.Module:
        """Authors a sample afresh and reads its weights."""
        return model.materialize(self.build(sample.checkpoint, sample.fields))

    def expected(self, sample: Sample) -> torch.Tensor:
        """Returns what the reference computes over the whole context: logits, float32 [T, V]."""
        if sample.architecture not in self._expected:
            self._expected[sample.architecture] = sample.logits(self.tokens(sample))
        return self._expected[sample.architecture]

    def tokens(self, sample: Sample) -> torch.Tensor:
        """Returns tokens that fill a sample's context, int32 [1, T]."""
        return samples.tokens(min(samples.CONTEXT, self.authored(sample).context_length))

    def plan(self, sample: Sample, recipe: str) -> QuantPlan:
        """Asks the plugin for the format of every weight of a sample."""
        module = self.authored(sample).module
        return self.hooks.quant_recipe(
            self.model(sample.checkpoint), module, recipes.resolve(recipe)
        )

    def signatures(self, sample: Sample, options: SignatureOptions, module: Any) -> Any:
        """Asks the plugin for the entry points of a sample's module, which was prepared."""
        return self.hooks.signatures(self.model(sample.checkpoint), module, options)

    def prepared(self, sample: Sample, options: SignatureOptions) -> AuthoredModel:
        """Authors a sample afresh and fits its masks to the form."""
        authored = self.build(sample.checkpoint, sample.fields)
        model.prepare(authored, options)
        return authored

    def file(self, sample: Sample, options: SignatureOptions, recipe: str) -> File:
        """Converts a sample, once."""
        key = (sample.architecture, options, recipe)
        if key not in self._files:
            plan = self.plan(sample, recipe)
            self._files[key] = self._trace(sample, options).file(recipe, plan)
        return self._files[key]

    def new_folder(self) -> Path:
        """Makes an empty folder."""
        return Path(tempfile.mkdtemp(dir=self._folder))

    def _trace(self, sample: Sample, options: SignatureOptions) -> Converted:
        key = (sample.architecture, options)
        if key not in self._converted:
            self._converted[key] = Converted(
                self.prepared(sample, options),
                lambda module: self.signatures(sample, options, module),
                sample.checkpoint,
                self.new_folder(),
                may_stamp=not self.hooks.answers("signatures"),
            )
        return self._converted[key]

    def _reference(self, architecture: str) -> Reference:
        conformance = self.card.conformance
        if conformance.reference:
            return samples.SuppliedReference(architecture, conformance, self._tensor_shapes)
        if not samples.has_transformers(architecture):
            raise CheckFailedError(
                f"transformers has no {architecture}, and the card names no"
                " conformance.reference that computes it"
            )
        return samples.TransformersReference(architecture, conformance)

    def _tensor_shapes(self, fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Returns the tensors that the plugin looks for, where nobody else knows them."""
        nothing = Checkpoint("a small model", self._folder, fields, {}, ())
        described = self.model(nothing)
        module, config, _ = model.author(self.hooks, described, fields)
        names = self.hooks.tensor_names(described, Config(fields, config.where), frozenset())
        weights = self.hooks.load(described, module, nothing, names)
        return {n: s for w in weights.values() for n, s in getattr(w, "expected", {}).items()}


def run(module: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Runs an authored module over tokens, int32 [1, T]; returns logits, float32 [T, V]."""
    return parity.run(module, tokens)[0]
