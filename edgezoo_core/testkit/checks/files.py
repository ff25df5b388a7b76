"""Checks of the converted files: signatures, recipes, weights, outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from edgezoo_core import contract
from edgezoo_core import recipe as recipes
from edgezoo_core.errors import listing
from edgezoo_core.testkit.check import check, demand
from edgezoo_core.testkit.demands import (
    FLOAT,
    demand_file,
    demand_loss,
    demand_numbers,
    demand_signatures,
    demand_weights,
)
from edgezoo_core.testkit.subject import Subject
from edgezoo_core.types import QuantPlan, WeightRule


@check("signatures-agree", since="0.1.0", needs=["tensors-mapped"])
def signatures_agree(subject: Subject) -> str:
    """The signatures have the contract's names and inputs, in the form that is asked for."""
    for sample in subject.samples:
        demand_signatures(subject, sample, subject.options)
    return "prefill and decode"


@check("recipes-planned", since="0.1.0", needs=["tensors-mapped"])
def recipes_planned(subject: Subject) -> str:
    """Each recipe gives each weight one format, none coarser than asked."""
    for sample in subject.samples:
        asked = recipes.weights(subject.authored(sample).module)
        for name in (FLOAT, *subject.recipes):
            expected = recipes.apply(recipes.resolve(name), asked, sample.architecture)
            found = list(_unlike(expected, subject.plan(sample, name)))
            demand(not found, *(f"{name}: {line}" for line in found))
    return listing(subject.recipes)


def _unlike(expected: QuantPlan, found: QuantPlan) -> Iterator[str]:
    asked = {(r.parameter, r.operator): r for r in expected.rules}
    given = Counter((r.parameter, r.operator) for r in found.rules)
    for key, count in given.items():
        if key not in asked:
            yield f"{' in '.join(key)} is no weight of the module"
        elif count > 1:
            yield f"{' in '.join(key)} has {count} formats"
    for key in asked.keys() - given.keys():
        yield f"{' in '.join(key)} has no format"
    for rule in found.rules:
        key = (rule.parameter, rule.operator)
        if rule.format is not None and rule.format not in recipes.FORMATS.values():
            yield f"{rule.parameter}: there is no format {rule.format.name}"
        elif key in asked and tuple(rule.shape) != asked[key].shape:
            yield f"{rule.parameter} has shape {asked[key].shape}, not {rule.shape}"
        elif key in asked and _bits(rule) < _bits(asked[key]):
            yield f"{rule.parameter}: {_bits(rule)} bits, asked for are {_bits(asked[key])}"


def _bits(rule: WeightRule) -> int:
    return rule.format.bits if rule.format else 32


@check("float32-converts", since="0.1.0", needs=["signatures-agree", "recipes-planned"])
def float32_converts(subject: Subject) -> str:
    """The module can be traced, and the float32 file keeps its signatures."""
    for sample in subject.samples:
        demand_file(subject, sample, subject.options)
    return "by streaming"


@check(
    "float32-equals-module", since="0.1.0", needs=["float32-converts", "module-equals-reference"]
)
def float32_equals_module(subject: Subject) -> str:
    """The float32 file computes what the module computes, by prefill and by decode."""
    return demand_numbers(subject, subject.options)


@check("recipes-convert", since="0.1.0", needs=["float32-converts"])
def recipes_convert(subject: Subject) -> str:
    """Each recipe of the card gives a file whose weights are as near as their format allows."""
    for name in subject.recipes:
        demand_weights(subject, name)
    return listing(subject.recipes)


@check(
    "quantized-within-bounds",
    since="0.1.0",
    needs=["recipes-convert", "float32-equals-module"],
)
def quantized_within_bounds(subject: Subject) -> str:
    """What each recipe's file says is near to what the float32 module says."""
    return ", ".join(demand_loss(subject, name) for name in subject.recipes)


@check("runtime-contract", since="0.1.0", needs=["recipes-convert"])
def runtime_contract(subject: Subject) -> str:
    """Each file has what LiteRT-LM needs."""
    for name in subject.recipes:
        report = contract.check(subject.file(subject.samples[0], subject.options, name).path)
        found = [f"{name}: {e.rule}: {e.found}" for e in report.errors]
        demand(not found, *found)
    return f"{len(subject.recipes)} files"


CHECKS = (
    signatures_agree,
    recipes_planned,
    float32_converts,
    float32_equals_module,
    recipes_convert,
    quantized_within_bounds,
    runtime_contract,
)
