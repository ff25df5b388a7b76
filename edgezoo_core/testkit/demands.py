"""What several checks demand of a converted sample."""

from __future__ import annotations

from typing import Any

from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.testkit import numbers, signatures
from edgezoo_core.testkit.check import CheckFailedError, demand
from edgezoo_core.testkit.samples import Sample
from edgezoo_core.testkit.subject import FILE_TOKENS, PREFILLED, Subject
from edgezoo_core.verification import report
from edgezoo_core.verification import weights as stored

#: The recipe that quantizes nothing.
FLOAT = "none"


def demand_module(subject: Subject, count: int) -> str:
    """Fails unless each module computes what its reference computes over `count` tokens."""
    worst = 0.0
    for sample in subject.samples:
        tokens = subject.tokens(sample)[:, :count]
        found = subject.compute(sample, tokens)
        apart = numbers.difference(subject.expected(sample)[: tokens.shape[1]], found)
        demand(apart <= numbers.MAX_DIFFERENCE, f"{sample.architecture}: {difference_text(apart)}")
        worst = max(worst, apart)
    return difference_text(worst)


def demand_signatures(subject: Subject, sample: Sample, options: SignatureOptions) -> None:
    """Fails unless the hook's signatures have the form that is asked for."""
    module: Any = subject.prepared(sample, options).module
    given = subject.signatures(sample, options, module)
    demand_none(signatures.problems_of_hook(given, module.config, options))


def demand_file(subject: Subject, sample: Sample, options: SignatureOptions) -> None:
    """Fails unless the sample can be traced, and its float32 file has the form asked for."""
    config: Any = subject.authored(sample).module.config
    file = subject.file(sample, options, FLOAT)
    demand_none(signatures.problems_of_file(file.signatures, config, options))


def demand_numbers(
    subject: Subject,
    options: SignatureOptions,
    *,
    count: int = FILE_TOKENS,
    first: int = PREFILLED,
) -> str:
    """Fails unless each sample's float32 file computes what its module computes.

    Args:
        subject: The plugin.
        options: Form of the file.
        count: Tokens that are read.
        first: How many of them by prefill.
    """
    worst = 0.0
    for sample in subject.samples:
        tokens = subject.tokens(sample)[:, :count]
        expected = subject.compute(sample, tokens)[first - 1 :]
        found = numbers.read(subject.file(sample, options, FLOAT).path, tokens, first)
        apart = numbers.difference(expected, found)
        demand(apart <= numbers.MAX_DIFFERENCE, f"{sample.architecture}: {difference_text(apart)}")
        worst = max(worst, apart)
    return difference_text(worst)


def demand_weights(subject: Subject, recipe: str) -> None:
    """Fails unless a recipe's file holds each weight as nearly as its format allows."""
    sample = subject.samples[0]
    file = subject.file(sample, subject.options, recipe)
    errors = stored.compare(file.path, file.program, sample.checkpoint)
    demand_none([f"{recipe}: {line}" for line in report.weights(errors).bad])


def demand_loss(subject: Subject, recipe: str) -> str:
    """Fails unless a recipe's file says nearly what the float32 module says."""
    sample = subject.samples[0]
    tokens = subject.tokens(sample)[:, :FILE_TOKENS]
    file = subject.file(sample, subject.options, recipe)
    expected = subject.compute(sample, tokens)[PREFILLED - 1 :]
    loss = numbers.mean_kl(expected, numbers.read(file.path, tokens, PREFILLED))
    bound = numbers.bound(file.plan)
    demand(loss <= bound, f"{recipe}: mean KL {loss:.2g} nats, at most {bound:g}")
    return f"{recipe} {loss:.1e}"


def demand_none(found: list[str]) -> None:
    """Fails where anything was found."""
    if found:
        raise CheckFailedError(*found)


def difference_text(apart: float) -> str:
    """Says how far two computations are apart."""
    return f"logits differ by {apart:.1e} of their norm, at most {numbers.MAX_DIFFERENCE:.0e}"
