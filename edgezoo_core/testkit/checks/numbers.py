"""Checks of what the module computes: the reference's numbers, for every config."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import Any, Literal, get_args

import torch

from edgezoo_core import folds
from edgezoo_core.conversion import rescaling
from edgezoo_core.errors import EdgezooError, listing
from edgezoo_core.testkit.check import check, demand
from edgezoo_core.testkit.demands import demand_module, difference_text
from edgezoo_core.testkit.numbers import MAX_DIFFERENCE, MIN_EFFECT, difference
from edgezoo_core.testkit.samples import Reference, Sample
from edgezoo_core.testkit.subject import MODULE_TOKENS, Subject, run
from edgezoo_core.testkit.variations import Variation, variations

_Answer = Literal["followed", "no effect", "refused"]


@check("module-equals-reference", since="0.1.0", needs=["tensors-mapped"])
def module_equals_reference(subject: Subject) -> str:
    """The module computes what the reference computes."""
    return demand_module(subject, MODULE_TOKENS)


@check("config-fields", since="0.1.0", needs=["module-equals-reference"])
def config_fields(subject: Subject) -> str:
    """Each config field that changes the reference changes the module likewise, or is refused."""
    found: list[str] = []
    answers: Counter[str] = Counter()
    refused: dict[str, None] = {}
    for reference, base in zip(subject.references, subject.samples, strict=True):
        for variation in variations(reference):
            answer = _answer(subject, reference, base, variation)
            if answer not in get_args(_Answer):
                found.append(answer)
                continue
            answers[answer] += 1
            if answer == "refused":
                refused[variation.names[0]] = None
    demand(not found, *found)
    counts = ", ".join(f"{answers[answer]} {answer}" for answer in get_args(_Answer))
    return f"{counts} ({listing(refused)})" if refused else counts


@check("folds-exact", since="0.1.0", needs=["module-equals-reference"])
def folds_exact(subject: Subject) -> str:
    """What the author declares to feed only certain weights does: folding changes no number."""
    counts = Counter[str]()
    for sample in subject.samples:
        module = subject.materialize(sample)
        places = folds.places(module)
        counts.update(place.name.rpartition(".")[2] for place in places)
        tokens = subject.tokens(sample)[:, :MODULE_TOKENS]
        expected = run(module, tokens)
        for place in places:
            # Up and down in turn: what is not undone shows.
            exponents = [(-1) ** i * (1 + i % 3) for i in range(place.channels)]
            folded: Any = subject.materialize(sample)
            shapes = {n: tuple(p.shape) for n, p in folded.named_parameters()}
            factors = rescaling.build(places, {place.name: exponents}, shapes, "the model")
            rescaling.apply(factors, folded)
            demand(
                torch.equal(run(folded, tokens), expected),
                f"{place.name} cannot be folded: the logits change",
            )
    return f"folds {listing(counts)}" if counts else "declares no folds"


def _answer(
    subject: Subject, reference: Reference, base: Sample, variation: Variation
) -> _Answer | str:
    """Says what the plugin makes of a variation; anything but an `_Answer` is a fault."""
    tokens = subject.tokens(base)[:, :MODULE_TOKENS]
    folder = subject.new_folder()
    try:
        try:
            varied = reference.make(variation.fields, folder)
            expected = varied.logits(tokens)
        except Exception:  # whatever it says to such a config, it computes nothing
            return "no effect"
        usual = subject.expected(base)[: tokens.shape[1]]
        if not variation.is_absence and difference(usual, expected) < MIN_EFFECT:
            return "no effect"
        return _held_against(subject, varied, expected, tokens, variation)
    finally:
        shutil.rmtree(folder)


def _held_against(
    subject: Subject,
    varied: Sample,
    expected: torch.Tensor,
    tokens: torch.Tensor,
    variation: Variation,
) -> _Answer | str:
    try:
        module = subject.materialize(varied)
        apart = difference(expected, run(module, tokens))
    except EdgezooError as e:
        if any(name in e.message for name in variation.names):
            return "refused"
        return f"{variation.text}: refused, but not by name: {e.message}"
    except Exception as e:  # the module can raise anything when it is run
        return f"{variation.text}: the module raised {type(e).__name__}: {e}"
    if apart <= MAX_DIFFERENCE:
        return "followed"
    return f"{variation.text}: neither followed nor refused; {difference_text(apart)}"


CHECKS = (module_equals_reference, config_fields, folds_exact)
