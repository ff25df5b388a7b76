"""Figures of `edgezoo bench --json` for a model card."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core.errors import PublishError


@dataclass(frozen=True, slots=True)
class Described:
    """A published file: name, size, sha256 in hex."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Line:
    """How fast a file was at a point: medians.

    Attributes:
        file: Its name.
        engine: What ran it.
        threads: Threads.
        prompt: Tokens of the prompt.
        context: Tokens in the cache when decoding began.
        prefill_per_s: Tokens of the prompt that were read in a second.
        decode_per_s: Tokens of the answer in a second.
        first_token_s: From the prompt to the first token of the answer.
    """

    file: str
    engine: str
    threads: int
    prompt: int
    context: int
    prefill_per_s: float
    decode_per_s: float
    first_token_s: float


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured, and on what machine."""

    machine: str
    runs: int
    lines: tuple[Line, ...]


def read(path: Path, published: Sequence[Described]) -> Speed:
    """Reads what `edgezoo bench --json` printed.

    Args:
        path: The file that it was written to.
        published: The files that are published; figures of others are left out.

    Raises:
        PublishError: It is something else, or speaks of none of these files.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        speed = _speed(found, published)
    except OSError as e:
        raise PublishError(f"{path}: {e.strerror or e}", remedy="check the path") from e
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as e:
        raise PublishError(
            f"{path} is not what `edgezoo bench --json` prints ({type(e).__name__}: {e})",
            remedy="write it anew: edgezoo bench FILE --json > bench.json",
        ) from e
    if not speed.lines:
        names = ", ".join(file.name for file in published)
        raise PublishError(
            f"{path} has no figures of {names}", remedy=f"measure it: edgezoo bench {names} --json"
        )
    return speed


def _speed(found: Any, published: Sequence[Described]) -> Speed:
    known = {(file.name, file.size_bytes) for file in published}
    files = [(Path(f["path"]).name, int(f["size_bytes"]), str(f["engine"])) for f in found["files"]]
    lines = []
    for point in found["points"]:
        name, size_bytes, engine = files[point["subject"]]
        if (name, size_bytes) in known:
            lines.append(
                Line(
                    name,
                    engine,
                    int(point["threads"]),
                    int(point["point"]["prefill"]),
                    int(point["context"]),
                    *(
                        _number(point[key]["median"])
                        for key in ("prefill_per_s", "decode_per_s", "first_token_s")
                    ),
                )
            )
    machine = found["machine"]
    versions = [f"{name} {version}" for name, version in machine["versions"].items()]
    system = f"{machine['system']} on {machine['architecture']}, {int(machine['cores'])} cores"
    return Speed("; ".join([system, *versions]), int(found["runs"]), tuple(lines))


def _number(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{value!r} is no speed")
    return number
