"""Which tensors of a checkpoint make up each parameter of a module, checked both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias

import torch
from litert_torch.generative.layers.model_config import FeedForwardType, ModelConfig
from litert_torch.generative.utilities.loader import ModelLoader

from edgezoo_core.checkpoint import HARMLESS, Checkpoint
from edgezoo_core.errors import LONGEST_LIST, CheckpointError, PluginError, listing, nearest
from edgezoo_core.types import LazyTensor, RowSlice

TensorNames: TypeAlias = ModelLoader.TensorNames

_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
#: Module of a block -> field of TensorNames.
_BLOCK_FIELDS = {
    "atten_func.output_projection": "attn_output_proj",
    "atten_func.query_norm": "attn_query_norm",
    "atten_func.query_norm.norm": "attn_query_norm",
    "atten_func.key_norm": "attn_key_norm",
    "ff.w2": "ff_down_proj",
    "ff.w3": "ff_up_proj",
    "ff.pre_ff_norm": "pre_ff_norm",
    "ff.post_ff_norm": "post_ff_norm",
    "pre_atten_norm": "pre_attn_norm",
    "post_atten_norm": "post_attn_norm",
}
_TOP_FIELDS = {"tok_embedding": "embedding", "final_norm": "final_norm", "lm_head": "lm_head"}


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A parameter as a row-wise concatenation of tensors of a checkpoint.

    Attributes:
        shape: Shape of the parameter.
        slices: What it is made of, in row order; together they cover each source once.
        expected: Shape that each source must have.
    """

    shape: tuple[int, ...]
    slices: tuple[RowSlice, ...]
    expected: Mapping[str, tuple[int, ...]]
    checkpoint: Checkpoint = field(repr=False)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the tensors that it is made of."""
        return tuple(self.expected)

    def read(self) -> torch.Tensor:
        """Reads and concatenates them: dtype as stored."""
        tensors = {name: self.checkpoint.tensor(name).read() for name in self.expected}
        if len(self.slices) == 1:
            return tensors[self.slices[0].name]
        return torch.cat([tensors[s.name][s.start : s.stop] for s in self.slices])


def map_parameters(
    module: torch.nn.Module, checkpoint: Checkpoint, names: TensorNames
) -> dict[str, LazyTensor]:
    """Maps each parameter of a decoder to tensors of the checkpoint, by the author's names.

    Raises:
        PluginError: A parameter belongs to no field of TensorNames, or to one that is not given.
    """
    mapped: dict[str, LazyTensor] = {}
    for parameter, tensor in module.named_parameters():
        shape = tuple(tensor.shape)
        prefix, _, kind = parameter.rpartition(".")
        prefixes = _prefixes(module.config, names, prefix, parameter)
        rows = _qkv_rows(module.config, prefix) if len(prefixes) == 3 else [shape[0]]
        expected = {f"{p}.{kind}": (n, *shape[1:]) for p, n in zip(prefixes, rows, strict=True)}
        slices = _slices(module.config, prefix, list(expected), rows)
        mapped[parameter] = MappedTensor(shape, slices, expected, checkpoint)
    return mapped


def _prefixes(config: ModelConfig, names: TensorNames, prefix: str, parameter: str) -> list[str]:
    block = _BLOCK.fullmatch(prefix)
    if not block:
        fields = [_TOP_FIELDS.get(prefix)]
    elif block[2] == "atten_func.qkv_projection":
        separate = ["attn_query_proj", "attn_key_proj", "attn_value_proj"]
        fields = ["attn_fused_qkv_proj"] if names.attn_fused_qkv_proj else list(separate)
    elif block[2] == "ff.w1":
        is_gated = config.block_config(int(block[1])).ff_config.type == FeedForwardType.GATED
        fields = ["ff_gate_proj" if is_gated else "ff_up_proj"]
    else:
        fields = [_BLOCK_FIELDS.get(block[2])]
    found = []
    for name in fields:
        value = getattr(names, name) if name else None
        if value is None:
            where = (
                f"TensorNames.{name} is not given" if name else "no field of TensorNames is for it"
            )
            raise PluginError(
                f"parameter {parameter} has no place in the checkpoint: {where}",
                remedy="give the field in the plugin's tensor_names, or answer the load hook",
            )
        found.append(value.format(block[1]) if block else value)
    return found


def _qkv_rows(config: ModelConfig, prefix: str) -> list[int]:
    attention = config.block_config(int(prefix.split(".")[1])).attn_config
    key_rows = attention.num_query_groups * attention.head_dim
    return [attention.num_heads * attention.head_dim, key_rows, key_rows]


def _slices(
    config: ModelConfig, prefix: str, sources: Sequence[str], rows: Sequence[int]
) -> tuple[RowSlice, ...]:
    whole = tuple(RowSlice(s, 0, n) for s, n in zip(sources, rows, strict=True))
    if len(sources) == 1:
        return whole
    attention = config.block_config(int(prefix.split(".")[1])).attn_config
    if not attention.qkv_fused_interleaved:
        return whole
    # litert-torch's interleaved order: for each group its query heads, its key, its value.
    groups = attention.num_query_groups
    per_group = [n // groups for n in rows]
    return tuple(
        RowSlice(s, g * n, (g + 1) * n)
        for g in range(groups)
        for s, n in zip(sources, per_group, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Fit:
    """How the tensors of a checkpoint fit a module; a line for each one that does not.

    Attributes:
        missing: Those that the module needs, with the nearest name that is there.
        misshapen: Those of another shape than expected.
        unexpected: Those that no parameter takes.
        quantized: Those that a parameter takes and that are no floats.
    """

    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unexpected: tuple[str, ...]
    quantized: tuple[str, ...]


def check(
    module: torch.nn.Module, weights: Mapping[str, LazyTensor], checkpoint: Checkpoint
) -> None:
    """Checks that weights and checkpoint cover each other, before anything is loaded.

    Raises:
        PluginError: The weights do not cover the module's parameters one to one.
        CheckpointError: Tensors are missing, unexpected, of the wrong shape, or quantized; the
            message says which, what was expected, and the nearest name that is there.
    """
    refuse_misfits(compare(module, weights, checkpoint), checkpoint.source)


def refuse_misfits(fit: Fit, source: str) -> None:
    """Says which tensors do not fit, the first of them.

    Raises:
        CheckpointError: Some do not.
    """
    problems = [*fit.missing, *fit.misshapen, *fit.unexpected]
    if problems:
        lines = problems[:LONGEST_LIST]
        if len(problems) > LONGEST_LIST:
            lines.append(f"and {len(problems) - LONGEST_LIST} more")
        raise CheckpointError(
            f"{source} does not fit the family's tensor names:\n  " + "\n  ".join(lines),
            remedy="check that checkpoint and config.json belong together, or pass --family",
        )
    if fit.quantized:
        raise CheckpointError(
            f"{source} holds weights that are no floats: {listing(fit.quantized)}",
            remedy="convert the original checkpoint, not one that is already quantized",
        )


def compare(
    module: torch.nn.Module, weights: Mapping[str, LazyTensor], checkpoint: Checkpoint
) -> Fit:
    """Compares weights and checkpoint, of which headers are enough.

    Raises:
        PluginError: The weights do not cover the module's parameters one to one.
    """
    parameters = {n: tuple(p.shape) for n, p in module.named_parameters()}
    uncovered = sorted(parameters.keys() - weights.keys())
    unknown = sorted(weights.keys() - parameters.keys())
    if uncovered or unknown:
        raise PluginError(
            "the load hook does not cover the module: "
            + "; ".join(
                f"{what} {listing(names)}"
                for what, names in (("not covered", uncovered), ("no such parameter", unknown))
                if names
            ),
            remedy="correct the plugin's load hook",
        )
    used = set(chain.from_iterable(w.sources for w in weights.values()))
    unexpected = sorted(
        n for n in checkpoint.tensors.keys() - used if not _is_harmless(n, module.config)
    )
    held = checkpoint.tensors
    return Fit(
        missing=tuple(_missing(weights, checkpoint, unexpected)),
        misshapen=tuple(_misshapen(weights, parameters, checkpoint)),
        unexpected=tuple(f"unexpected {n} {list(held[n].shape)}" for n in unexpected),
        quantized=tuple(sorted(n for n in used & held.keys() if held[n].dtype is None)),
    )


def _is_harmless(name: str, config: ModelConfig) -> bool:
    is_tied_head = name == "lm_head.weight" and config.lm_head_share_weight_with_embedding
    return is_tied_head or HARMLESS.search(name) is not None


def _missing(
    weights: Mapping[str, LazyTensor], checkpoint: Checkpoint, unexpected: Sequence[str]
) -> list[str]:
    problems = []
    for parameter, weight in weights.items():
        for source in weight.sources:
            if source not in checkpoint.tensors:
                shape = getattr(weight, "expected", {}).get(source, weight.shape)
                guess = nearest(source, unexpected)
                found = (
                    f"{guess} {list(checkpoint.tensors[guess].shape)}" if guess else "none like it"
                )
                problems.append(
                    f"missing {source} {list(shape)} (for {parameter}; nearest found: {found})"
                )
    return problems


def _misshapen(
    weights: Mapping[str, LazyTensor],
    parameters: Mapping[str, tuple[int, ...]],
    checkpoint: Checkpoint,
) -> list[str]:
    problems = []
    for parameter, weight in weights.items():
        expected = getattr(weight, "expected", None)
        if expected is None:
            if tuple(weight.shape) != parameters[parameter]:
                problems.append(
                    f"wrong shape for {parameter}: {list(weight.shape)},"
                    f" expected {list(parameters[parameter])}"
                )
            continue
        for source, shape in expected.items():
            stored = checkpoint.tensors.get(source)
            if stored and stored.shape != shape:
                problems.append(
                    f"wrong shape of {source}: {list(stored.shape)}, expected {list(shape)}"
                    f" (for {parameter})"
                )
    return problems
