"""A checkpoint becomes a module: author, names, load; every field and tensor accounted for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgezoo_core import architecture, mapping
from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.config import Config
from edgezoo_core.config_fields import CHANGES_MATHEMATICS
from edgezoo_core.errors import PluginError, listing
from edgezoo_core.shapes import SignatureOptions, check_context
from edgezoo_core.types import LazyTensor, Model, Progress, silent

if TYPE_CHECKING:
    from edgezoo_core.hooks import LoadedPlugin

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AuthoredModel:
    """A re-authored module and where its weights are; none is read yet.

    Attributes:
        model: What is being converted.
        module: The module, parameters on meta.
        weights: Parameter name -> lazy tensor.
        config_reading: What the author's answer depends on (see `Config.reading`).
        config_account: What became of each config field: read, inert, unknown.
        warnings: What the manifest must say about the config.
    """

    model: Model
    module: torch.nn.Module
    weights: Mapping[str, LazyTensor]
    config_reading: Mapping[str, Any]
    config_account: Mapping[str, Any]
    warnings: tuple[str, ...]

    @property
    def context_length(self) -> int:
        """Longest sequence that the model was made for, in tokens."""
        config: Any = self.module.config
        return int(config.max_seq_len)


def build(
    plugin: LoadedPlugin, model: Model, checkpoint: Checkpoint, fields: Mapping[str, Any]
) -> AuthoredModel:
    """Authors the module and maps its weights.

    Args:
        plugin: The family's hooks.
        model: What is being converted.
        checkpoint: Its files.
        fields: config.json, or what stands in for it.

    Raises:
        ConfigError: A field is missing, malformed, or changes the mathematics unread.
        CheckpointError: The tensors do not fit.
        PluginError: A hook failed.
    """
    module, config, warnings = author(plugin, model, fields)
    names = plugin.tensor_names(model, config, frozenset(checkpoint.tensors))
    weights = plugin.load(model, module, checkpoint, names)
    mapping.check(module, weights, checkpoint)
    return AuthoredModel(
        model, module, weights, config.reading(), config.account(), tuple(warnings)
    )


def author(
    plugin: LoadedPlugin, model: Model, fields: Mapping[str, Any]
) -> tuple[torch.nn.Module, Config, list[str]]:
    """Authors the module and accounts for every field of the config.

    Returns:
        The module, the config as it was read, and a warning for each field that nobody knows.

    Raises:
        ConfigError: A field is missing, malformed, or changes the mathematics unread.
        PluginError: The hook failed.
    """
    config = Config(fields, f"config.json of {model.source}")
    module = plugin.author(model, config)
    return module, config, check_leftovers(config)


def check_leftovers(config: Config) -> list[str]:
    """Refuses fields that may change the mathematics and that the author did not read.

    Returns:
        A warning for each field that nobody knows.

    Raises:
        ConfigError: A field is known to matter, or differs from transformers' default.
    """
    warnings = []
    defaults: Mapping[str, Any] | None = None
    for name, value in config.leftovers().items():
        if name in CHANGES_MATHEMATICS:
            if not any(value is a or value == a for a in CHANGES_MATHEMATICS[name]):
                raise config.refused(name, value, "it changes the mathematics")
            continue
        if defaults is None:
            defaults = _transformers_defaults(config)
        if name in defaults:
            if value != defaults[name]:
                raise config.refused(name, value, f"transformers' default is {defaults[name]!r}")
        elif value is not None:
            warnings.append(f"config.json: {name} = {value!r} is not known and was ignored")
    return warnings


def _transformers_defaults(config: Config) -> Mapping[str, Any]:
    from transformers import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    return CONFIG_MAPPING[kind]().to_dict() if kind in CONFIG_MAPPING else {}


def prepare(authored: AuthoredModel, options: SignatureOptions) -> None:
    """Checks the options against the model, and fits its masks to them.

    Raises:
        ConversionError: The KV cache is longer than the model's context.
    """
    check_context(options, authored.context_length)
    # The author does not know the KV length; a mask that is an input needs no cache.
    module: Any = authored.module
    architecture.drop_idle_windows(module, options.kv_cache_length)
    module.build_mask_cache(0 if options.mask_as_input else options.kv_cache_length)


def materialize(authored: AuthoredModel, progress: Progress = silent) -> torch.nn.Module:
    """Reads all weights into the module as float32 and ties what is tied.

    Memory: 4 bytes per parameter, plus one tensor.

    Raises:
        PluginError: A tensor is still on meta afterwards.
    """
    module = authored.module
    progress("loading weights")
    holders: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    for names in holders.values():
        key = next(n for n in names if n in authored.weights)
        value = authored.weights[key].read().to(torch.float32).contiguous()
        tensor = torch.nn.Parameter(value, requires_grad=False)
        for name in names:
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, tensor)
    left = [n for n, t in [*module.named_parameters(), *module.named_buffers()] if t.is_meta]
    if left:
        raise PluginError(
            f"no weights were mapped for {listing(left)}",
            remedy="make the plugin's author create buffers on the CPU, or map them in load",
        )
    return module


def on_demand(module: Any, weights: Mapping[str, LazyTensor]) -> None:
    """Lets a module on meta read each layer's weights, in float32, when the layer is called.

    Args:
        module: An authored module.
        weights: Parameter name -> lazy tensor, tied parameters once.
    """
    first = {id(p): n for n, p in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    bring(module, _Mapped(weights, {n: first[id(p)] for n, p in every}))


def bring(module: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Lets accelerate bring the weights of a layer when it is called, and drop them afterwards."""
    from accelerate.hooks import attach_align_device_hook

    attach_align_device_hook(
        module.eval(), execution_device=torch.device("cpu"), offload=True, weights_map=weights
    )


class _Mapped(Mapping[str, torch.Tensor]):
    """The re-authored module's parameters, in float32."""

    def __init__(self, weights: Mapping[str, LazyTensor], tied: Mapping[str, str]) -> None:
        self._weights = weights
        self._tied = tied

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._weights[self._tied[name]].read().float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
