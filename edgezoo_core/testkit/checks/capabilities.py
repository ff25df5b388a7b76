"""Checks of what a card claims beyond the musts."""

from __future__ import annotations

from dataclasses import replace

from edgezoo_core.shapes import KvLayout, SignatureOptions
from edgezoo_core.testkit.check import check
from edgezoo_core.testkit.demands import (
    demand_file,
    demand_loss,
    demand_module,
    demand_numbers,
    demand_signatures,
    demand_weights,
)
from edgezoo_core.testkit.subject import Subject

#: What `int4` stands for.
INT4_RECIPES = ("dynamic_int4_block32", "dynamic_int4_block128")
_OTHER_LAYOUT: dict[KvLayout, KvLayout] = {"default": "transposed", "transposed": "default"}


@check(
    "prefill-lengths",
    since="0.1.0",
    capability="prefill_lengths",
    needs=["float32-equals-module"],
)
def prefill_lengths(subject: Subject) -> str:
    """Prefill signatures of several lengths agree, each alone and one after another."""
    short, long = subject.options.prefill_lengths
    for first in (short + 1, long + short + 1):
        demand_numbers(subject, subject.options, count=first + 2, first=first)
    return f"{short} and {long} tokens"


@check("int4", since="0.1.0", capability="int4", needs=["float32-equals-module"])
def int4(subject: Subject) -> str:
    """The recipes with int4 weights in blocks convert, and stay within bounds."""
    for name in INT4_RECIPES:
        demand_weights(subject, name)
    return ", ".join(demand_loss(subject, name) for name in INT4_RECIPES)


@check(
    "transposed-kv",
    since="0.1.0",
    capability="transposed_kv",
    needs=["float32-equals-module"],
)
def transposed_kv(subject: Subject) -> str:
    """Both layouts of the KV cache convert and compute the same."""
    options = subject.options
    return _demand_form(subject, replace(options, kv_layout=_OTHER_LAYOUT[options.kv_layout]))


@check("mask-input", since="0.1.0", capability="mask_input", needs=["float32-equals-module"])
def mask_input(subject: Subject) -> str:
    """The mask as an input and the mask built in convert and compute the same."""
    options = subject.options
    return _demand_form(subject, replace(options, mask_as_input=not options.mask_as_input))


@check(
    "long-context",
    since="0.1.0",
    capability="long_context",
    needs=["float32-equals-module"],
)
def long_context(subject: Subject) -> str:
    """Reference, module and file agree to the end of the context."""
    count = max(subject.tokens(sample).shape[1] for sample in subject.samples)
    demand_module(subject, count)
    demand_numbers(subject, subject.options, count=count)
    return f"{count} tokens"


def _demand_form(subject: Subject, options: SignatureOptions) -> str:
    """Fails unless files of this form compute what the module computes."""
    # The form, not the lengths: one prefill signature will do.
    options = replace(options, prefill_lengths=options.prefill_lengths[-1:])
    for sample in subject.samples:
        demand_signatures(subject, sample, options)
        demand_file(subject, sample, options)
    return demand_numbers(subject, options)


CHECKS = (prefill_lengths, int4, transposed_kv, mask_input, long_context)
