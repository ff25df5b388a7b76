"""Mutations that get through to the inside: random bytes alone seldom leave a parser's first line.

Each takes the bytes, libFuzzer's own mutation, the longest length allowed and a seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from fuzz import folding

Bytes = Callable[[bytes, int], bytes]
Mutator = Callable[[bytes, Bytes, int, int], bytes]

#: Numbers at which something ends.
_EDGES = (0, 1, -1, 2, 7, 8, 127, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53, 2**60, 2**63, 2**64)
_STRINGS = ("", "../x", "/etc/passwd", "a\0b", "\x1b]0;x\x07", "\u202e", "F32", "U8", "F4", "none")
_VALUES: tuple[Any, ...] = (
    *_EDGES,
    *_STRINGS,
    None,
    True,
    False,
    0.5,
    1e308,
    -1.5,
    [],
    {},
    [0, 4],
    [2**62, 4],
    ["a"],
    {"a": {}},
)
_WORDS = (
    b"NaN",
    b"1e999",
    b"-Infinity",
    b'"\\ud800"',
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"[" * 70,
    b'{"a":' * 70,
    b"9" * 400,
    b"\0",
)
_TOML = (
    b"[[models]]",
    b"[models]",
    b"[layers.0]",
    b'[layers."3-1"]',
    b'[layers."0-999999999999"]',
    b"default = 1",
    b'default = "fp16"',
    b'name = "\\u001b[2J"',
    b"id = []",
    b"parameters = -1",
    b"parameters = 1e400",
    b"x = 9999-12-31T23:59:59Z",
    b"x = inf",
    b"x = nan",
    b"[signatures]",
    b"kv_cache_length = 0",
    b"prefill_lengths = [true]",
    b"capabilities = [{}]",
    b"recipes = [[]]",
    b"a.b.c.d = 1",
    b'"" = 1',
    b"schema = 2",
    b"config = {a = {b = [1, {c = 2}]}}",
)


def of_json(data: bytes, mutate: Bytes, longest: int, seed: int) -> bytes:
    """Changes a value somewhere in a JSON text; now and then its bytes."""
    chance = random.Random(seed)
    if chance.random() < 0.25:
        return mutate(data, longest)
    if chance.random() < 0.1:
        at = chance.randrange(len(data) + 1)
        return (data[:at] + chance.choice(_WORDS) + data[at:])[:longest]
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate(data, longest)
    return json.dumps(_changed(value, chance)).encode("utf-8", "replace")[:longest]


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        what = chance.random()
        if what < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if what < 0.2:
            return {**value, str(chance.choice(_STRINGS)): value[key]}
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        what = chance.random()
        if what < 0.15:
            return value[:at] + value[at + 1 :]
        if what < 0.3:
            return [*value, value[at]]
        return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
    if isinstance(value, int) and chance.random() < 0.4:
        return value + chance.choice((-1, 1, 8, -8))
    if isinstance(value, str) and chance.random() < 0.4:
        return value + chance.choice(_STRINGS)
    return chance.choice(_VALUES)


def of_safetensors(data: bytes, mutate: Bytes, longest: int, seed: int) -> bytes:
    """Changes the header's JSON and states its length again, mostly the right one."""
    chance = random.Random(seed)
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8 or chance.random() < 0.1:
        return mutate(data, longest)
    header = of_json(data[8 : 8 + length], mutate, longest - 8, seed + 1)
    rest = data[8 + length :]
    if chance.random() < 0.2:
        rest = rest + bytes(chance.randrange(9)) if chance.random() < 0.5 else rest[:-1]
    stated = len(header)
    if chance.random() < 0.1:
        stated = chance.choice([n for n in _EDGES if 0 <= n < 2**64])
    return (stated.to_bytes(8, "little") + header + rest)[:longest]


def of_toml(data: bytes, mutate: Bytes, longest: int, seed: int) -> bytes:
    """Moves, drops, doubles and adds lines, or changes a value; now and then the bytes."""
    chance = random.Random(seed)
    if chance.random() < 0.35:
        return mutate(data, longest)
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    what = chance.random()
    if what < 0.2:
        del lines[at]
    elif what < 0.4:
        lines.insert(chance.randrange(len(lines) + 1), lines[at])
    elif what < 0.7:
        lines.insert(at, chance.choice(_TOML))
    else:
        key = lines[at].partition(b"=")[0]
        value = json.dumps(chance.choice([v for v in _VALUES if v is not None])).encode()
        lines[at] = key + b"= " + value
    return b"\n".join(lines)[:longest]


def of_binary(data: bytes, mutate: Bytes, longest: int, seed: int) -> bytes:
    """Puts a number at which something ends where an offset or a length may be."""
    chance = random.Random(seed)
    if not data or chance.random() < 0.3:
        return mutate(data, longest)
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        width = chance.choice((1, 2, 4, 4, 4, 8))
        at = chance.randrange(0, max(1, len(data) - width + 1))
        at -= at % min(width, 4)
        old = int.from_bytes(data[at : at + width], "little")
        new = chance.choice(
            (
                *_EDGES,
                old + chance.choice((-16, -8, -4, -2, -1, 1, 2, 4, 8, 16)),
                len(data) - at,
                -at,
                chance.randrange(len(data)),
            )
        )
        changed[at : at + width] = (new % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(changed)[:longest]


def of_folded(data: bytes, mutate: Bytes, longest: int, seed: int) -> bytes:
    """Does so in what was folded, mostly near its beginning, where the header is."""
    chance = random.Random(seed)
    whole = folding.unfold(data)
    header = min(len(whole), 1024)
    if chance.random() < 0.4:
        return folding.fold(of_binary(whole[:header], mutate, header, seed) + whole[header:])
    return folding.fold(of_binary(whole, mutate, len(whole), seed))[:longest]


MUTATORS: Mapping[str, Mutator] = {
    "safetensors": of_safetensors,
    "adapter_weights": of_safetensors,
    "index": of_json,
    "config": of_json,
    "authored": of_json,
    "adapter": of_json,
    "manifest": of_json,
    "cache_record": of_json,
    "tokenizer_json": of_json,
    "cards": of_toml,
    "registry": of_toml,
    "recipe": of_toml,
    "tflite": of_binary,
    "pytorch": of_binary,
    "sentencepiece": of_binary,
    "litertlm": of_folded,
}

#: Words of a format that libFuzzer may put anywhere.
WORDS: Mapping[str, tuple[bytes, ...]] = {
    "template": (
        b"{{",
        b"}}",
        b"{%",
        b"%}",
        b"{% for i in range(99999) %}",
        b"{% endfor %}",
        b"{% set x = x ~ x %}",
        b"{% macro f(a) %}",
        b"{% endmacro %}",
        b"{{ f(f) }}",
        b"__class__",
        b"__globals__",
        b"|attr(",
        b"|map(",
        b"|join",
        b" * 999999999",
        b"cycler(",
        b"{% include 'template' %}",
        b"{% call f() %}",
        b"{% if ",
        b"{% endif %}",
        b"lipsum(",
        b"|format(",
        b"|indent(",
        b"%999999d",
        b" ** 99999",
    ),
}
