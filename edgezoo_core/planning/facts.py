"""What a file's size follows from: out of the cache, from a worker, or from headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgezoo_core import compiler, errors, plugins
from edgezoo_core import recipe as recipes
from edgezoo_core.cache import Cache
from edgezoo_core.checkpoint import HARMLESS, HUB_NAMES, Checkpoint
from edgezoo_core.compiler import workers
from edgezoo_core.compiler.job import Job
from edgezoo_core.errors import CacheError, EdgezooError, RecipeError
from edgezoo_core.planning.result import Basis, Finding
from edgezoo_core.plugins import Plugin
from edgezoo_core.types import Operator, Progress, WeightRule

#: Field of TensorNames -> part of a recipe.
_PARTS = {
    "embedding": "embedding",
    "attn_query_proj": "qkv",
    "attn_key_proj": "qkv",
    "attn_value_proj": "qkv",
    "attn_output_proj": "o",
    "ff_gate_proj": "gate",
    "ff_up_proj": "up",
    "ff_down_proj": "down",
    "lm_head": "lm_head",
}
_BY_ENDING = {HUB_NAMES[name].rpartition(".")[2] + ".weight": part for name, part in _PARTS.items()}
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model before it is converted.

    Attributes:
        basis: Where it comes from.
        layers: Blocks.
        shapes: Parameters by name.
        rules: The format of each use of a weight.
        context_length: In tokens; None where headers alone are known.
        kv_slot_bytes: Of a slot of the KV cache over all layers; None as before.
        artifact_bytes: Where the skeleton is known, exactly.
        fit: Lines for tensors that do not map, by kind (see `edgezoo_core.mapping.Fit`).
    """

    basis: Basis
    layers: int
    shapes: Mapping[str, Sequence[int]]
    rules: tuple[WeightRule, ...]
    context_length: int | None = None
    kv_slot_bytes: int | None = None
    artifact_bytes: int | None = None
    fit: Mapping[str, Sequence[str]] | None = None


def kept(job: Job, plugin: Plugin, checkpoint: Checkpoint) -> Facts | None:
    """Returns what the cache knows of a job, None if it does not have its trace.

    A trace is of exactly these tensors, so it says that they map, too.

    Raises:
        RecipeError: The recipe does not fit the model.
    """
    try:
        found = compiler.look_up(job, plugin, checkpoint, Cache())
    except CacheError:
        return None
    if found.about is None:
        return None
    weights = _weights(found.about)
    try:
        rules = recipes.apply(job.recipe, weights, job.model.source).rules
    except RecipeError:
        # Told here, without a worker, unless the plugin has a mind of its own about recipes.
        if plugins.load(plugin).answers("quant_recipe"):
            return None
        raise
    if found.made is None:
        return _facts("trace", found.about, rules)
    size = int(found.made["program"]["size_bytes"])
    return replace(_facts("skeleton", found.about, rules), artifact_bytes=size)


def surveyed(
    job: Job, checkpoint: Checkpoint | None, progress: Progress
) -> tuple[Facts | None, list[Finding]]:
    """Lets a worker author the module and map the headers to it; returns what it found."""
    tensors = None
    if checkpoint is not None:
        held = checkpoint.tensors.values()
        tensors = [(t.name, t.shape, t.dtype, t.size_bytes) for t in held]
    request = {"job": job.to_json(), "tensors": tensors}
    (answer,) = workers.run("survey", [request], progress)
    told = answer.result
    findings = [
        Finding(
            "error",
            f["subject"],
            f["message"],
            f["remedy"],
            getattr(errors, f["kind"], EdgezooError),
        )
        for f in told["faults"]
    ]
    findings += [Finding("warning", "config", warning) for warning in told["warnings"]]
    if told["about"] is None:
        return None, findings
    weights = _weights(told["about"])
    formats = told["formats"] or ["none"] * len(weights)
    rules = tuple(
        replace(w, format=recipes.FORMATS[f]) for w, f in zip(weights, formats, strict=True)
    )
    facts = _facts("module", told["about"], rules)
    return replace(facts, fit=told["fit"]), findings


def from_headers(job: Job, checkpoint: Checkpoint) -> Facts:
    """Guesses the parts of a model by the usual names of tensors, without its family's help."""
    shapes = {n: t.shape for n, t in checkpoint.tensors.items() if not HARMLESS.search(n)}
    rules = [rule for name, shape in shapes.items() if (rule := _rule(name, shape))]
    if not any(r.part == "lm_head" for r in rules):  # tied: the table is used twice
        rules += [
            replace(r, part="lm_head", operator="FULLY_CONNECTED")
            for r in rules
            if r.part == "embedding"
        ]
    numbers = [r.layer for r in rules if r.layer is not None]
    chosen = job.recipe
    rules = [replace(r, format=chosen.parts.get(r.part, chosen.default)) for r in rules]
    return Facts("headers", 1 + max(numbers, default=-1), shapes, tuple(rules))


def _rule(name: str, shape: tuple[int, ...]) -> WeightRule | None:
    if len(shape) != 2:
        return None
    ending = ".".join(name.split(".")[-2:])
    part = _BY_ENDING.get(ending, "embedding" if "emb" in name else name)
    operator: Operator = "EMBEDDING_LOOKUP" if part == "embedding" else "FULLY_CONNECTED"
    match = _LAYER.search(name)
    return WeightRule(name, operator, part, int(match[1]) if match else None, shape, None)


def _weights(about: Mapping[str, Any]) -> list[WeightRule]:
    return [WeightRule(**{**w, "shape": tuple(w["shape"])}) for w in about["weights"]]


def _facts(basis: Basis, about: Mapping[str, Any], rules: tuple[WeightRule, ...]) -> Facts:
    return Facts(
        basis,
        about["depth"],
        about["shapes"],
        rules,
        about["context_length"],
        about["kv_slot_bytes"],
    )
