"""Rules for the length of the KV cache: as it is, and as LiteRT-LM computes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgezoo_core.contract.report import Fault, NotCheckedError, rule
from edgezoo_core.contract.subject import Subject
from edgezoo_core.errors import listing

#: Numbers of `StateBuffer.Type`.
_GLOBAL = (1, 2)
_LINEAR = 5
_KNOWN = (1, 2, 3, 4, 5)


@rule(
    "executor-metadata",
    "error",
    why="LiteRT-LM allocates the caches by its state buffers: without a sequence_axis, or with a"
    " name that is not in the graph, it creates no engine, and what is left out has no buffer",
    remedy="`edgezoo check --fix` writes it anew; so does `edgezoo bundle`",
    is_mendable=True,
)
def executor_metadata(subject: Subject) -> Iterator[str]:
    """ExecutorMetadata, if there is one, describes each cache."""
    buffers = _buffers(subject)
    caches = _caches(subject)
    if not buffers:
        yield "it lists no state buffers"
    described = set()
    for buffer in buffers:
        name, *others = _names(buffer) or [""]
        described.add(name)
        if not name or others:
            yield f"a state buffer has the names {_listed([name, *others])}"
        elif name not in caches:
            yield f"state buffer {name!r} is no input of {subject.prefills[0].name}"
        elif buffer.type not in _KNOWN:
            yield f"state buffer {name!r} has type {buffer.type}"
        elif buffer.type != _LINEAR and not buffer.HasField("sequence_axis"):
            yield f"state buffer {name!r} has no sequence_axis"
        elif not 0 <= buffer.sequence_axis < len(caches[name]):
            yield (
                f"state buffer {name!r} has sequence_axis {buffer.sequence_axis}, its shape is"
                f" {list(caches[name])}"
            )
    if buffers and (missing := sorted(caches.keys() - described)):
        yield f"it leaves out {_listed(missing)}"


@rule(
    "kv-capacity",
    "error",
    why="LiteRT-LM reads the capacity from ExecutorMetadata's sequence_axis, else from the mask's"
    " last dimension, else from dimension 2 of the key cache, and refuses every longer prompt:"
    " `Input token ids are too long`",
    remedy="`edgezoo check --fix` adds ExecutorMetadata; so does `edgezoo bundle`",
    is_mendable=True,
)
def kv_capacity(subject: Subject) -> Iterator[Fault]:
    """LiteRT-LM computes the capacity that the KV cache has."""
    computed = _slots_found(subject)
    if computed != subject.slots:
        found = f"it takes {computed} for the slots, the cache has {subject.slots}"
        # A .tflite only runs in a bundle, which may yet say so.
        yield Fault(found, "error" if subject.bundle else "warning")


@rule(
    "max-num-tokens",
    "warning",
    why="an app shows it as the length of the context: a conversation fails, or ends, before or"
    " after the cache is full; 0 stands for 4096",
    remedy="`edgezoo check --fix` sets it; so does `edgezoo bundle`",
    is_mendable=True,
)
def max_num_tokens(subject: Subject) -> Iterator[str]:
    """max_num_tokens is what the KV cache holds."""
    if subject.llm.max_num_tokens != subject.capacity:
        yield f"it is {subject.llm.max_num_tokens}, the cache holds {subject.capacity} tokens"


def _slots_found(subject: Subject) -> int:
    """Returns the slots that LiteRT-LM 0.18.1 finds, before it makes fewer of a prime."""
    subject.refuse_dynamic()
    prefill = subject.prefills[0]
    if subject.executor is not None:
        caches = _caches(subject)
        lengths: list[int] = [
            caches[names[0]][buffer.sequence_axis]
            for buffer in _buffers(subject)
            if buffer.type in _GLOBAL and (names := _names(buffer)) and names[0] in caches
            if 0 <= buffer.sequence_axis < len(caches[names[0]])
        ]
        if not lengths:
            raise NotCheckedError("ExecutorMetadata describes no cache that grows")
        return min(lengths)
    masks = [tensor.shape for name, tensor in prefill.inputs.items() if "mask" in name]
    keys = [s for name, s in _caches(subject).items() if name.startswith(subject.cache_names[0])]
    if masks and masks[-1]:
        return masks[-1][-1]
    if not keys or len(keys[0]) < 3:
        raise NotCheckedError(f"{prefill.name} has no key caches of three dimensions")
    return keys[0][2]


def _buffers(subject: Subject) -> list[Any]:
    if subject.executor is None:
        raise NotCheckedError("there is no ExecutorMetadata, which is optional")
    return list(subject.executor.llm_executor_metadata.state_buffers)


def _names(buffer: Any) -> list[str]:
    names = (
        buffer.prefill_input_name,
        buffer.prefill_output_name,
        buffer.decode_input_name,
        buffer.decode_output_name,
    )
    return list(dict.fromkeys(name for name in names if name))


def _caches(subject: Subject) -> dict[str, tuple[int, ...]]:
    inputs = subject.prefills[0].inputs
    return {n: t.shape for n, t in inputs.items() if n.startswith(subject.cache_names)}


def _listed(names: list[str]) -> str:
    return listing(repr(name) for name in names)


RULES = (executor_metadata, kv_capacity, max_num_tokens)
