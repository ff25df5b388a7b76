"""The two files of a PEFT LoRA adapter: what its config asks for, and its tensors by module.

Every rule is peft 0.21.2's. What cannot be merged exactly is refused by name.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from edgezoo_core import sandbox, texts
from edgezoo_core.errors import CheckpointError, listing

CONFIG = "adapter_config.json"
#: In the order in which peft looks for them.
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MERGE_BEFORE = "merge it with peft into the model, save that, and convert the result"

_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>(?:(?!lora_)[^.]+\.)+?)"
    r"(?P<part>lora_[AB]\.weight|lora_embedding_[AB]|(?:base_layer\.)?weight)"
)
#: Fields that are read here or in edgezoo_core.adapters.
_READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}
_READ |= {"init_lora_weights", "bias", "modules_to_save", "base_model_name_or_path", "revision"}
#: Fields that chose what was trained, and how: the tensors present are the result. The settings of
#: an initialisation mean nothing unless init_lora_weights names it.
_INFORMATION = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
_INFORMATION |= {"task_type", "auto_mapping", "inference_mode", "lora_dropout", "peft_version"}
_INFORMATION |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"}
_INFORMATION |= {"megatron_core", "qalora_group_size"}
_REASONS = {
    "use_dora": "DoRA rescales whole weights, so what it adds is not B @ A",
    "fan_in_fan_out": "it is for weights stored as [in, out], and a checkpoint's are [out, in]",
    "target_parameters": "it adapts parameters that are no weight of a linear layer",
    "lora_bias": "its B has a bias of its own",
    "trainable_token_indices": "it replaces single rows of the embedding",
    "layer_replication": "it makes a model of other layers than the checkpoint's",
    "alora_invocation_tokens": "it acts after certain tokens only, which no merged weight can do",
}
#: These start A and B and leave the base alone (eva and lora's own start B at 0, as mica does A;
#: orthogonal's A and B cancel), so that peft loads what is saved as a plain adapter. pissa, olora,
#: corda, lora_ga and loftq move the base to make up for A and B, and the adapter fits only that.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")


def parse_config(path: Path, source: str) -> dict[str, Any]:
    """Reads adapter_config.json.

    Raises:
        CheckpointError: It is malformed, or asks for what cannot be merged exactly.
    """
    try:
        config = texts.read_json(path, texts.CONFIG_BYTES)
    except OSError as e:
        raise CheckpointError(
            f"{source}: {CONFIG}: {e.strerror or e}",
            remedy="name a folder or repo that holds a PEFT adapter",
        ) from e
    except ValueError as e:
        raise CheckpointError(
            f"{source}: {CONFIG} is not JSON: {e}", remedy="obtain the adapter again"
        ) from e
    problems = list(_problems(config)) if isinstance(config, dict) else ["it is no JSON object"]
    if problems:
        raise CheckpointError(
            f"{source}: {CONFIG} cannot be merged exactly: {'; '.join(problems)}",
            remedy=MERGE_BEFORE,
        )
    return dict(config)


def _problems(config: dict[str, Any]) -> Iterator[str]:
    kind = config.get("peft_type")
    if kind != "LORA":  # the other types have other fields: nothing more can be said
        yield f"peft_type is {kind!r}, and only 'LORA' adds B @ A"
        return
    init = config.get("init_lora_weights", True)
    if not (init is None or isinstance(init, bool) or init in _PLAIN_INITS):
        yield (
            f"init_lora_weights is {init!r}, which is not known to leave the base's weights alone"
            " (peft's save_pretrained(path_initial_model_for_weight_conversion=) makes it plain)"
        )
    for key, accepts in _NUMBERS.items():
        if not accepts(config.get(key)):
            yield f"{key} is {config.get(key)!r}"
    for key, of in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        yield from _pattern_problems(key, config.get(key) or {}, of)
    if not isinstance(config.get("use_rslora", False), bool):
        yield f"use_rslora is {config['use_rslora']!r}"
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        yield f"modules_to_save is {saved!r}"
    for key in sorted(set(config) - _READ - _INFORMATION):
        # peft writes all fields, also the ones that are off and that a later release added.
        if config[key] not in (None, False, [], {}):
            reason = _REASONS.get(key, "edgezoo does not know what it does")
            yield f"{key} is {config[key]!r}: {reason}"


def _pattern_problems(key: str, pattern: Any, of: str) -> Iterator[str]:
    if not isinstance(pattern, dict):
        yield f"{key} is {pattern!r}"
        return
    for expression, value in pattern.items():
        try:
            with warnings.catch_warnings():
                # What a later Python may read otherwise means today what it means to peft.
                warnings.simplefilter("ignore", FutureWarning)
                re.compile(matching(expression))
        except (re.error, OverflowError, RecursionError) as e:
            yield f"{key}: {expression!r} is no regular expression: {e}"
        if not _NUMBERS[of](value):
            yield f"{key}: {expression!r} is {value!r}"


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_alpha(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


_NUMBERS = {"r": _is_rank, "lora_alpha": _is_alpha}


def rank_and_scaling(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Returns r and what peft multiplies B @ A by. Source: peft's LoraLayer.update_layer."""
    rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    found = (v for k, v in (pattern or {}).items() if re.match(matching(k), module))
    return next(found, default)


def matching(key: str) -> str:
    """Returns the expression of a pattern: it matches a whole name, or its end after a dot.

    Source: peft's get_pattern_key.
    """
    return rf"(.*\.)?({key})$"


def refuse_endless(config: Mapping[str, Any], modules: Iterable[str], source: str) -> None:
    """Checks that the config's expressions come to an end on the names of the modules.

    Raises:
        CheckpointError: They take too long.
    """
    keys = [k for name in ("rank_pattern", "alpha_pattern") for k in config.get(name) or {}]
    if not keys:
        return
    try:
        sandbox.try_patterns([matching(key) for key in keys], list(modules))
    except sandbox.TemplateError as e:
        raise CheckpointError(
            f"{source}: {CONFIG}: a regular expression among {listing(map(repr, keys))}: {e}",
            remedy=MERGE_BEFORE,
        ) from e


def open_tensors(path: Path, source: str) -> dict[str, dict[str, Any]]:
    """Opens the weights: module -> part -> a tensor, or what reads a tensor's rows when sliced.

    Modules are spelt without `base_model.model.`. Parts are lora_A, lora_B, lora_embedding_A and
    lora_embedding_B, and weight for a whole one: peft saves that of an adapted embedding, as
    `base_layer.weight`, and of each module of modules_to_save.

    Raises:
        CheckpointError: The file is damaged, empty, or holds something else.
    """
    modules: dict[str, dict[str, Any]] = {}
    others = []
    for name, view in _open_views(path, source).items():
        match = _TENSOR.fullmatch(str(name))
        if match is None:
            others.append(str(name))
            continue
        part = match["part"].removeprefix("base_layer.").removesuffix(".weight")
        parts = modules.setdefault(match["module"].removesuffix("."), {})
        if part in parts:
            others.append(str(name))
        parts[part] = view
    if others:
        raise CheckpointError(
            f"{source}: {path.name} holds more than whole weights and A and B of weights:"
            f" {listing(sorted(others))}",
            remedy=MERGE_BEFORE,
        )
    if not modules:
        raise CheckpointError(
            f"{source}: {path.name} holds no tensors", remedy="obtain the adapter again"
        )
    return modules


def _open_views(path: Path, source: str) -> dict[Any, Any]:
    try:
        if path.suffix == ".safetensors":
            handle: Any = safe_open(path, framework="pt")
            return {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
        # weights_only: nothing but tensors and plain containers is ever built from the file.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged file can end in any exception at all
        raise CheckpointError(
            f"{source}: {path.name} is no readable adapter ({type(e).__name__}: {e})",
            remedy="obtain the adapter again, as safetensors",
        ) from e
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise CheckpointError(
            f"{source}: {path.name} holds no state dict",
            remedy="obtain the adapter again, as safetensors",
        )
    return state
