"""Checks of the tensor map: against a checkpoint that fits, and against some that do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

from edgezoo_core.errors import CheckpointError, EdgezooError
from edgezoo_core.tensor_files import StoredTensor
from edgezoo_core.testkit.check import check, demand
from edgezoo_core.testkit.samples import Sample
from edgezoo_core.testkit.subject import Subject
from edgezoo_core.types import LazyTensor, RowSlice

Tensors = Mapping[str, StoredTensor]


@check("tensors-mapped", since="0.1.0", needs=["author-on-meta"])
def tensors_mapped(subject: Subject) -> str:
    """Each parameter has its rows of the checkpoint, and each row belongs to one parameter."""
    found: list[str] = []
    for sample in subject.samples:
        weights = subject.authored(sample).weights
        found += _unlike_parameters(weights)
        found += _unlike_checkpoint(weights, sample)
    demand(not found, *found)
    return f"{sum(len(s.checkpoint.tensors) for s in subject.samples)} tensors"


def _unlike_parameters(weights: Mapping[str, LazyTensor]) -> Iterator[str]:
    for name, weight in weights.items():
        rows = weight.shape[0] if weight.shape else 1
        slices = getattr(weight, "slices", ())
        given = sum(s.stop - s.start for s in slices)
        if given != rows:
            yield f"{name} has {rows} rows, its slices are {given} rows of the checkpoint"
        if {s.name for s in slices} != set(weight.sources):
            yield f"{name}: its sources are not what its slices name"


def _unlike_checkpoint(weights: Mapping[str, LazyTensor], sample: Sample) -> Iterator[str]:
    used: dict[str, list[RowSlice]] = {}
    for weight in weights.values():
        for part in getattr(weight, "slices", ()):
            used.setdefault(part.name, []).append(part)
    for name, tensor in sample.checkpoint.tensors.items():
        rows = tensor.shape[0] if tensor.shape else 1
        parts = sorted(used.get(name, ()), key=lambda s: s.start)
        if any(a.stop > b.start for a, b in pairwise(parts)):
            yield f"rows of {name} are used more than once"
        elif sum(s.stop - s.start for s in parts) != rows:
            yield f"not all rows of {name} are used"


@check("tensor-removed", since="0.1.0", needs=["tensors-mapped"])
def tensor_removed(subject: Subject) -> str:
    """A checkpoint that lacks a tensor is refused, and the tensor named."""

    def remove(tensors: Tensors, name: str) -> Tensors:
        return {n: t for n, t in tensors.items() if n != name}

    return _refused(subject, "removed", remove)


@check("tensor-renamed", since="0.1.0", needs=["tensors-mapped"])
def tensor_renamed(subject: Subject) -> str:
    """A checkpoint with a tensor under another name is refused, and the tensor named."""

    def rename(tensors: Tensors, name: str) -> Tensors:
        return {(f"other.{n}" if n == name else n): t for n, t in tensors.items()}

    return _refused(subject, "renamed", rename)


@check("tensor-reshaped", since="0.1.0", needs=["tensors-mapped"])
def tensor_reshaped(subject: Subject) -> str:
    """A checkpoint with a tensor of another shape is refused, and the tensor named."""

    def reshape(tensors: Tensors, name: str) -> Tensors:
        shape = tensors[name].shape
        return {**tensors, name: replace(tensors[name], shape=(shape[0] + 1, *shape[1:]))}

    return _refused(subject, "reshaped", reshape)


def _refused(subject: Subject, what: str, spoil: Callable[[Tensors, str], Tensors]) -> str:
    found = []
    count = 0
    for sample in subject.samples:
        for name in _one_of_each_kind(sample.checkpoint.tensors):
            count += 1
            tensors = spoil(sample.checkpoint.tensors, name)
            spoilt = replace(sample.checkpoint, tensors=tensors)
            try:
                subject.build(spoilt, sample.fields)
            except CheckpointError as e:
                if name not in e.message:
                    found.append(f"{name} {what}: the error does not name it: {e.message}")
            except EdgezooError as e:
                found.append(f"{name} {what}: {e.message}")
            else:
                found.append(f"{name} {what}: nobody noticed")
    demand(not found, *found)
    return f"{count} tensors"


def _one_of_each_kind(tensors: Tensors) -> list[str]:
    """Returns one name of each kind: of the tensors that all layers have, the last layer's."""
    return list({re.sub(r"\d+", "{}", name): name for name in tensors}.values())


CHECKS = (tensors_mapped, tensor_removed, tensor_renamed, tensor_reshaped)
