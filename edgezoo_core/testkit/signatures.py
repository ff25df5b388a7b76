"""The signatures that the contract asks for, and in what others differ from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgezoo_core import slots
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.types import Signature, SignatureSpec, TensorSpec

_Form = tuple[str, tuple[int, ...]]


def problems_of_hook(
    found: Sequence[Signature], config: Any, options: SignatureOptions
) -> list[str]:
    """Returns in what the answer of the hook differs from the contract.

    Args:
        found: The answer.
        config: The module's ModelConfig.
        options: What was asked for.
    """
    inputs = {s.name: dict(_forms(s.inputs)) for s in found}
    return list(_problems(inputs, config, options))


def problems_of_file(
    found: Sequence[SignatureSpec], config: Any, options: SignatureOptions
) -> list[str]:
    """Returns in what the signatures of a file differ from the contract.

    Args:
        found: As they stand in the file.
        config: The module's ModelConfig.
        options: What was asked for.
    """
    inputs = {s.name: _specs(s.inputs) for s in found}
    outputs = {s.name: _specs(s.outputs) for s in found}
    problems = list(_problems(inputs, config, options))
    for name, given in outputs.items():
        caches = {n: form for n, form in inputs[name].items() if n.startswith("kv_cache_")}
        logits = {"logits": ("float32", (1, 1, int(config.vocab_size)))}
        expected = {**caches, **logits} if name == "decode" else caches
        problems += _differences(f"output of {name}", expected, given)
    return problems


def _problems(
    inputs: Mapping[str, Mapping[str, _Form]], config: Any, options: SignatureOptions
) -> Iterator[str]:
    lengths = {**{f"prefill_{n}": n for n in options.prefill_lengths}, "decode": 1}
    for name in lengths.keys() - inputs.keys():
        yield f"there is no signature {name}"
    for name in inputs.keys() - lengths.keys():
        yield f"nobody asked for signature {name}"
    for name, length in lengths.items():
        if name in inputs:
            count = _slots(inputs[name], options)
            expected = _expected(config, options, length, count)
            yield from _differences(f"input of {name}", expected, inputs[name])


def _slots(given: Mapping[str, _Form], options: SignatureOptions) -> int:
    """Returns the slots that a signature must have; a few more are fine where a mask tells them."""
    asked = options.kv_cache_length
    if options.mask_as_input and "mask" in given:
        count = given["mask"][1][-1]
        return count if slots.used(count) == asked else asked
    return asked


def _expected(config: Any, options: SignatureOptions, length: int, count: int) -> dict[str, _Form]:
    forms: dict[str, _Form] = {
        "tokens": ("int32", (1, length)),
        "input_pos": ("int32", (length,)),
    }
    if options.mask_as_input:
        forms["mask"] = ("float32", (1, 1, length, count))
    for index in range(config.num_layers):
        attention = config.block_config(index).attn_config
        heads, width = attention.num_query_groups, attention.head_dim
        key = value = (1, count, heads, width)
        if options.kv_layout == "transposed":
            key, value = (1, heads, count, width), (1, heads, width, count)
        forms[f"kv_cache_k_{index}"] = ("float32", key)
        forms[f"kv_cache_v_{index}"] = ("float32", value)
    return forms


def _differences(
    what: str, expected: Mapping[str, _Form], found: Mapping[str, _Form]
) -> Iterator[str]:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"{what}: {name} is missing"
        elif name not in expected:
            yield f"{what}: {name} is too much"
        elif found[name] != expected[name]:
            yield f"{what}: {name} is {_text(found[name])}, expected {_text(expected[name])}"


def _forms(inputs: Mapping[str, Any]) -> Iterator[tuple[str, _Form]]:
    """Yields name and form of each tensor; a KV cache counts as the tensors in it."""
    for name, value in inputs.items():
        if hasattr(value, "caches"):
            for index, entry in enumerate(value.caches):
                yield f"{name}_k_{index}", _form(entry.k_cache)
                yield f"{name}_v_{index}", _form(entry.v_cache)
        else:
            yield name, _form(value)


def _form(tensor: Any) -> _Form:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def _specs(tensors: Sequence[TensorSpec]) -> dict[str, _Form]:
    return {t.name: (t.dtype, t.shape) for t in tensors}


def _text(form: _Form) -> str:
    return f"{form[0]} {list(form[1])}"
