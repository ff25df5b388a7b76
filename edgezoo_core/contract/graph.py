"""Rules for signatures and their tensors: names, dtypes, ranks, lengths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from edgezoo_core import slots
from edgezoo_core.bundle import sections
from edgezoo_core.contract.report import Fault, NotCheckedError, rule
from edgezoo_core.contract.subject import (
    EMBEDDINGS,
    LOCAL_MASKS,
    MASKS,
    POSITIONS,
    TOKENS,
    Subject,
    first_of,
)
from edgezoo_core.decoder import EntryPoint
from edgezoo_core.errors import listing
from edgezoo_core.types import TensorSpec

_CONVERT = "convert the model again, with `edgezoo convert` say"
#: Longest of the shortest prefill lengths that leaves a conversation nearly all of its cache.
_SHORT = 32
#: LiteRT-LM's own inputs besides those that every language model has.
_OTHERS = {"param_tensor", "per_layer_embeddings"}


@rule(
    "decode-name",
    "error",
    why="LiteRT-LM looks for `decode`, exactly so, and cannot create an engine without it",
    remedy=_CONVERT,
)
def decode_name(subject: Subject) -> Iterator[str]:
    """A signature is called decode."""
    if "decode" not in subject.entry_points:
        yield f"signatures {_names(subject.entry_points)}"


@rule(
    "prefill-name",
    "error",
    why="LiteRT-LM takes those that begin with `prefill`, and stops with no prefill runner",
    remedy=_CONVERT,
)
def prefill_name(subject: Subject) -> Iterator[str]:
    """Signatures that read a prompt begin with prefill."""
    if not any(name.startswith("prefill") for name in subject.entry_points):
        yield f"signatures {_names(subject.entry_points)}"


@rule(
    "prefill-clash",
    "error",
    why="LiteRT-LM keys them by the length of their positions, and the last one in the file takes"
    " the place of the others",
    remedy="convert the model again with one signature per length",
)
def prefill_clash(subject: Subject) -> Iterator[Fault]:
    """No two prefill signatures read the same number of tokens."""
    by_length: dict[int, list[EntryPoint]] = defaultdict(list)
    for prefill in subject.prefills:
        by_length[subject.prefill_length(prefill)].append(prefill)
    for length, same in by_length.items():
        if len(same) > 1:
            is_alike = all(p.inputs.keys() == same[0].inputs.keys() for p in same)
            found = f"{_names(p.name for p in same)} all read {length} tokens"
            yield Fault(found, "warning" if is_alike else "error")


@rule(
    "smallest-prefill",
    "warning",
    why="a turn fails once the free cache is shorter than the smallest prefill length, however"
    " short the message is",
    remedy="convert the model again with a small length as well: --prefill 8 --prefill 128",
)
def smallest_prefill(subject: Subject) -> Iterator[Fault]:
    """A prefill signature reads 32 tokens or fewer."""
    subject.refuse_dynamic()
    smallest = min(subject.prefill_length(prefill) for prefill in subject.prefills)
    capacity = subject.capacity
    found = f"the smallest reads {smallest} tokens, and the cache holds {capacity}"
    if smallest > capacity / 2:
        yield Fault(found, "error")
    elif smallest > _SHORT:
        yield Fault(found, "warning")


@rule(
    "prefill-length",
    "warning",
    why="LiteRT-LM takes a prime above 10 for a placeholder and makes a round number below of it,"
    " wherever it meets that number in the graph",
    remedy="convert the model again with lengths that are not prime, such as powers of two",
)
def prefill_length(subject: Subject) -> Iterator[str]:
    """Prefill signatures read as many tokens as they say."""
    for prefill in subject.prefills:
        length = subject.prefill_length(prefill)
        if slots.used(length) != length:
            yield f"{prefill.name} reads {length} tokens, of which {slots.used(length)} remain"


@rule(
    "token-tensors",
    "error",
    why="LiteRT-LM finds the input by its name and fills it with 32-bit ids, or with the rows of"
    " a separate embedder",
    remedy=_CONVERT,
)
def token_tensors(subject: Subject) -> Iterator[str]:
    """Each signature takes tokens int32 [1, T], or embeddings float32 [1, T, E]."""
    decode = subject.decode
    name = first_of(TOKENS, decode.inputs) or first_of(EMBEDDINGS, decode.inputs)
    if name is None:
        yield f"decode takes {_names(decode.inputs)}"
        return
    dtype, rank = ("int32", 2) if name in TOKENS else ("float32", 3)
    for signature in (decode, *subject.prefills):
        tensor = signature.inputs.get(name)
        if tensor is None:
            yield f"{signature.name} has no input {name}, as decode has"
        elif tensor.dtype != dtype or len(tensor.shape) != rank or tensor.shape[0] != 1:
            yield f"{name} of {signature.name} is {_form(tensor)}"


@rule(
    "position-tensors",
    "error",
    why="LiteRT-LM finds the input by its name, fills it with 32-bit positions, and tells the"
    " prefill lengths by it",
    remedy=_CONVERT,
)
def position_tensors(subject: Subject) -> Iterator[str]:
    """Each signature takes input_pos int32 [T], as long as the tokens."""
    decode = subject.decode
    if first_of(POSITIONS, decode.inputs) is None:
        yield f"decode takes {_names(decode.inputs)}"
        return
    for signature in (decode, *subject.prefills):
        tensor = signature.inputs.get(subject.positions)
        tokens = first_of(TOKENS + EMBEDDINGS, signature.inputs)
        if tensor is None:
            yield f"{signature.name} has no input {subject.positions}, as decode has"
        elif tensor.dtype != "int32" or len(tensor.shape) not in (1, 2):
            yield f"{subject.positions} of {signature.name} is {_form(tensor)}"
        elif tokens and signature.inputs[tokens].shape[1:2] != tensor.shape[-1:]:
            yield (
                f"{subject.positions} of {signature.name} is {_form(tensor)}, {tokens} is"
                f" {_form(signature.inputs[tokens])}"
            )


@rule(
    "mask-form",
    "error",
    why="LiteRT-LM fills a mask of four dimensions and of float32, float16 or bool, and takes its"
    " last one for the length of the cache",
    remedy=_CONVERT,
)
def mask_form(subject: Subject) -> Iterator[str]:
    """A mask is float32 [1, 1, T, S] in every signature, or in none."""
    signatures = (subject.decode, *subject.prefills)
    name = first_of(MASKS, subject.decode.inputs)
    subject.refuse_dynamic()
    for signature in signatures:
        found = first_of(MASKS, signature.inputs)
        if found != name:
            yield f"{signature.name} takes {found or 'no mask'}, decode takes {name or 'none'}"
        elif found:
            tensor = signature.inputs[found]
            length = 1 if signature is subject.decode else subject.prefill_length(signature)
            is_form = len(tensor.shape) == 4 and tensor.shape[:3] == (1, 1, length)
            if tensor.dtype not in ("float32", "float16", "bool") or not is_form:
                yield f"{found} of {signature.name} is {_form(tensor)}, T is {length}"
            elif tensor.shape[-1] != subject.slots:
                yield f"{found} of {signature.name} is {_form(tensor)}, S is {subject.slots}"


@rule(
    "known-inputs",
    "error",
    why="prefill fails for want of a buffer; decode reads whatever is in it",
    remedy="convert the model again with these inputs made constant",
)
def known_inputs(subject: Subject) -> Iterator[str]:
    """No signature takes an input that LiteRT-LM does not fill."""
    known = {*TOKENS, *EMBEDDINGS, *POSITIONS, *MASKS, *LOCAL_MASKS, *_OTHERS}
    caches = ("kv_cache_", "k_cache_", "v_cache_")
    for signature in (subject.decode, *subject.prefills):
        strange = [
            name
            for name in signature.inputs
            # Inputs of adapters are filled once an app names an adapter.
            if name not in known and not name.startswith(caches) and "lora" not in name
        ]
        if strange:
            yield f"{signature.name} takes {_names(strange)}"


@rule(
    "logits-form",
    "error",
    why="LiteRT-LM refuses logits that do not have three dimensions, and samples from 32-bit or"
    " 16-bit ones",
    remedy=_CONVERT,
)
def logits_form(subject: Subject) -> Iterator[str]:
    """Decode gives logits float32 [1, 1, V]."""
    tensor = subject.decode.outputs.get("logits")
    if tensor is None:
        yield f"decode gives {_names(subject.decode.outputs)}"
    elif tensor.dtype not in ("float32", "float16") or len(tensor.shape) != 3:
        yield f"logits are {_form(tensor)}"


@rule(
    "embedder",
    "error",
    why="LiteRT-LM looks each token up in the bundle's embedder, and cannot prefill without one",
    remedy="bundle the embedder's .tflite as well, as litert-torch's export_hf does",
)
def embedder(subject: Subject) -> Iterator[str]:
    """A model that takes embeddings comes with its embedder."""
    name = first_of(EMBEDDINGS, subject.decode.inputs)
    if name is None or first_of(TOKENS, subject.decode.inputs):
        return
    if not subject.contents.models(sections.EMBEDDER):
        yield f"decode takes {name}, and no section is a {sections.EMBEDDER}"


@rule(
    "cache-tensors",
    "error",
    why="LiteRT-LM keeps one buffer per name and gives it to every signature, as input and output",
    remedy=_CONVERT,
)
def cache_tensors(subject: Subject) -> Iterator[str]:
    """Each signature takes and gives every cache under one name, in one form."""
    try:
        stems = subject.cache_names
    except NotCheckedError:
        if "decode" not in subject.entry_points:
            raise
        yield f"decode takes {_names(subject.decode.inputs)}"
        return
    expected = {n: t for n, t in subject.decode.inputs.items() if n.startswith(stems)}
    keys = sum(name.startswith(stems[0]) for name in expected)
    if keys * 2 != len(expected):
        yield f"decode has {keys} key caches and {len(expected) - keys} value caches"
    for signature in (subject.decode, *subject.prefills):
        for role, tensors in (("takes", signature.inputs), ("gives", signature.outputs)):
            found = {n: t for n, t in tensors.items() if n.startswith(stems)}
            differing = sorted(expected.keys() ^ found.keys())
            if differing:
                yield f"{signature.name} {role} other caches than decode takes: {_names(differing)}"
            for name in sorted(expected.keys() & found.keys()):
                if _form(found[name]) != _form(expected[name]):
                    yield (
                        f"{signature.name} {role} {name} {_form(found[name])}, decode takes"
                        f" {_form(expected[name])}"
                    )


def _names(names: Iterable[str]) -> str:
    # Names come out of the file: escapes in them are not for the terminal.
    return listing(repr(name) for name in names) or "none"


def _form(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


RULES = (
    decode_name,
    prefill_name,
    prefill_clash,
    smallest_prefill,
    prefill_length,
    token_tensors,
    position_tensors,
    mask_form,
    known_inputs,
    logits_form,
    embedder,
    cache_tensors,
)
