"""Whether a model is one block repeated, and the model with most of its blocks left out."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from litert_torch.generative.utilities.model_builder import DecoderOnlyModel

from edgezoo_core.architecture import Decoder
from edgezoo_core.conversion.periodicity import SHALLOW

#: Attributes of torch.nn.Module that hold what is compared otherwise, or nothing that computes.
_TORCH = frozenset(vars(torch.nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def is_uniform(module: torch.nn.Module) -> bool:
    """Whether a model's blocks differ in nothing but their weights, and number enough to stamp.

    Only loops over the blocks that are known to treat them alike are trusted.
    """
    if not isinstance(module, DecoderOnlyModel) or not _has_stock_forward(module):
        return False
    if type(module.transformer_blocks) is not torch.nn.ModuleList:
        return False
    if any(getattr(m, name) for m in module.modules() for name in _HOOKS):
        return False  # a hook may know which block it is on
    blocks = list(module.transformer_blocks)
    configs = [module.config.block_config(i) for i in range(len(blocks))]
    return (
        len(blocks) > SHALLOW
        and module.config.num_layers == len(blocks)
        and all(c == configs[0] for c in configs)
        and all(_alike(blocks[0], b) for b in blocks)
        and not _share_parameters(module, blocks)
    )


def truncate(module: Any) -> Any:
    """Returns a copy of a uniform model with its first two blocks and its last."""
    shallow = copy.deepcopy(module)
    blocks = list(shallow.transformer_blocks)
    kept = [*range(SHALLOW - 1), len(blocks) - 1]
    shallow.transformer_blocks = torch.nn.ModuleList(blocks[i] for i in kept)
    shallow.config = dataclasses.replace(
        module.config,
        num_layers=SHALLOW,
        block_configs=[module.config.block_config(i) for i in kept],
    )
    return shallow.eval()


def block_scope(module: Any) -> str:
    """Returns a block's part of the names of its operators, without its number."""
    kind = type(module.transformer_blocks[0])
    return f"{kind.__module__}.{kind.__qualname__}_"


def _has_stock_forward(module: torch.nn.Module) -> bool:
    trusted = Decoder if isinstance(module, Decoder) else DecoderOnlyModel
    names = {n for t in trusted.__mro__ if issubclass(t, DecoderOnlyModel) for n in vars(t)}
    return all(
        getattr(type(module), name) is getattr(trusted, name) and name not in vars(module)
        for name in {"__call__", *names} - {"__init__", "__module__", "__doc__"}
    )


def _share_parameters(module: torch.nn.Module, blocks: Sequence[torch.nn.Module]) -> bool:
    """Whether a block's parameter is another block's, too, or the model's own."""
    inside = [id(p) for b in blocks for p in b.parameters()]
    own = dict(module.named_parameters(remove_duplicate=False))
    outside = {id(p) for n, p in own.items() if not n.startswith("transformer_blocks.")}
    return len(set(inside)) != len(inside) or not outside.isdisjoint(inside)


def _alike(a: Any, b: Any) -> bool:
    """Whether two modules, or two of their attributes, compute the same but for weights."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.nn.Module):
        return (
            _same_tensors(a.named_parameters(), b.named_parameters(), values=False)
            and _same_tensors(a.named_buffers(), b.named_buffers(), values=True)
            and _alike(_attributes(a), _attributes(b))
            and _alike(dict(a.named_children()), dict(b.named_children()))
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, functools.partial):
        return _alike((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    if isinstance(a, types.FunctionType):
        return a.__code__ == b.__code__ and _alike(
            (a.__defaults__, a.__kwdefaults__, _cells(a)),
            (b.__defaults__, b.__kwdefaults__, _cells(b)),
        )
    if isinstance(a, torch.Tensor):
        return not a.is_meta and not b.is_meta and bool(torch.equal(a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    return {n: v for n, v in vars(module).items() if n not in _TORCH}


def _cells(function: types.FunctionType) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__ or ()]


def _same_tensors(a: Any, b: Any, *, values: bool) -> bool:
    left, right = dict(a), dict(b)
    return left.keys() == right.keys() and all(
        t.shape == right[n].shape
        and t.dtype == right[n].dtype
        and (not values or (not t.is_meta and bool(torch.equal(t, right[n]))))
        for n, t in left.items()
    )
