"""JSON and TOML of strangers: read with a bound, and nothing in it that could surprise later.

Python's own parsers take what other programs refuse, or read otherwise: keys that stand twice, NaN,
numbers that no float holds, halves of characters, nesting that ends in a RecursionError once the
value is printed. Two readers that see different values in one file are how a wrong model comes out
quietly, so all of that is refused here, in one place.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: What a text may take, in bytes. A Python value of JSON takes up to 40 times its text, as measured
#: with lists of empty lists; so a config costs at most some 320 MB, an index 2.6 GB.
CONFIG_BYTES = 8 << 20
MANIFEST_BYTES = 16 << 20
#: The longest known, of 90,000 tensors, has 9 MB.
INDEX_BYTES = 64 << 20
#: No vocabulary that a phone can hold comes near; Gemma's, of 262,144 tokens, has 33 MB.
TOKENIZER_BYTES = 256 << 20
#: Cards and recipes are written by hand.
TOML_BYTES = 1 << 20

#: Of lists and tables inside of each other; a config has four, a card five.
DEEPEST = 64
#: Digits of a number; 10**308 is near the end of what a float holds.
_DIGITS = 300
#: tomllib's time grows with the square of a dotted key's parts: one of a megabyte takes hours.
_KEY_PARTS = 16
_LONG_KEY = re.compile(rf"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){{{_KEY_PARTS}}}""")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read(path: Path, limit_bytes: int) -> str:
    """Returns the text of a regular file, UTF-8.

    Raises:
        OSError: It cannot be opened, or is a folder, a pipe or a device: those are never read.
        ValueError: It is longer than `limit_bytes`, or not UTF-8.
    """
    return read_bytes(path, limit_bytes).decode("utf-8")


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """Returns the content of a regular file; see `read`.

    Raises:
        OSError: As `read`.
        ValueError: It is longer than `limit_bytes`.
    """
    # Without O_NONBLOCK opening a pipe waits for somebody to write.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise ValueError(f"it is longer than {limit_bytes} bytes")
    return content


def read_json(path: Path, limit_bytes: int) -> Any:
    """Returns the value of a JSON file.

    Raises:
        OSError: As `read`.
        ValueError: It is too long, or not JSON as `parse_json` takes it.
    """
    return parse_json(read(path, limit_bytes))


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the table of a TOML file.

    Raises:
        OSError: As `read`.
        ValueError: It is too long, not TOML, or nested too deeply.
    """
    text = read(path, TOML_BYTES)
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {_KEY_PARTS} parts")
    try:
        found = tomllib.loads(text)
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e
    refuse_deep(found)
    return found


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text: RFC 8259, each key once.

    Raises:
        ValueError: It is not JSON, a key stands twice, a number is NaN, infinite or longer than any
            float, a string holds half of a surrogate pair, or it is nested too deeply.
    """
    try:
        found = json.loads(
            text,
            object_pairs_hook=unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_short,
        )
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e
    refuse_deep(found)
    if _SURROGATE.search(text):
        # Halves that make a pair were joined by the parser: what is left of them is no text.
        json.dumps(found, ensure_ascii=False).encode()
    return found


def finite(value: Any) -> Any:
    """Returns a JSON value with null in place of NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object's dictionary.

    Raises:
        ValueError: A key stands twice.
    """
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("it has a key twice")
    return value


def refuse_deep(value: Any) -> None:
    """Checks how deeply lists and dictionaries are nested.

    Raises:
        ValueError: Deeper than `DEEPEST`.
    """
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def _inside(value: Any) -> Iterable[Any]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in values if isinstance(inner, dict | list)]


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text[:20]}, which no float holds")
    return value


def _short(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"it holds a number of {len(text)} digits")
    return int(text)
