"""Checks of what the author builds, weights aside."""

from __future__ import annotations

from edgezoo_core import model
from edgezoo_core.errors import listing
from edgezoo_core.testkit.check import CheckFailedError, check, demand
from edgezoo_core.testkit.subject import Subject


@check("reference-known", since="0.1.0", needs=["hooks-known"])
def reference_known(subject: Subject) -> str:
    """Each architecture of the card is one of transformers, or the card names its reference."""
    for sample in subject.samples:
        demand(bool(sample.checkpoint.tensors), f"the small {sample.architecture} has no tensors")
    return listing(sample.architecture for sample in subject.samples)


@check("author-on-meta", since="0.1.0", needs=["reference-known"])
def author_on_meta(subject: Subject) -> str:
    """The author builds the module in eval mode, its parameters on meta, the rest on the CPU."""
    counts = []
    for sample in subject.samples:
        module, *_ = model.author(subject.hooks, subject.model(sample.checkpoint), sample.fields)
        buffers = [name for name, buffer in module.named_buffers() if buffer.is_meta]
        demand(not buffers, f"buffers are on meta: {listing(buffers)}")
        parts = [name for name, part in module.named_modules() if part.training]
        demand(not parts, f"parts are in training mode: {listing(parts)}")
        counts.append(sum(p.numel() for p in module.parameters()))
    return f"{listing(map(str, counts))} parameters"


@check("context-length", since="0.1.0", needs=["author-on-meta"])
def context_length(subject: Subject) -> str:
    """The module's max_seq_len is the config's max_position_embeddings."""
    for reference, sample in zip(subject.references, subject.samples, strict=True):
        name = reference.names.get("max_position_embeddings", "max_position_embeddings")
        if name not in sample.fields:
            continue
        for length in (sample.fields[name], 2 * sample.fields[name]):
            fields = {**sample.fields, name: length}
            described = subject.model(sample.checkpoint)
            module, *_ = model.author(subject.hooks, described, fields)
            found = getattr(module.config, "max_seq_len", None)
            if found != length:
                raise CheckFailedError(f"{name} is {length}, but max_seq_len is {found}")
    return "read from the config"


CHECKS = (reference_known, author_on_meta, context_length)
