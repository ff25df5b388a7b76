"""Runs every kept input through its target once: `python -m fuzz.replay`. Needs no atheris.

Prints one JSON object: for each target the inputs, the longest time of the processor that one took,
and how much the process grew; and what was found wrong.
"""

from __future__ import annotations

import json
import resource
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz import samples, targets

CORPUS = Path(__file__).parent / "corpus"


def inputs(name: str) -> Iterator[tuple[str, bytes]]:
    """Yields the kept inputs of a target, by name."""
    for path in sorted((CORPUS / name).glob("*")):
        yield path.name, path.read_bytes()


def replay(name: str) -> dict[str, Any]:
    """Runs a target on its inputs.

    Returns:
        `inputs`, `slowest_s`, `grown_bytes`, and `findings`: input -> traceback.
    """
    target = targets.TARGETS[name]
    for seed in samples.seeds()[name]:
        target(seed)  # imports what it imports
    before, slowest, findings, count = _peak_bytes(), 0.0, {}, 0
    for label, data in inputs(name):
        began = time.process_time()
        try:
            target(data)
        except BaseException:  # whatever comes out is what is looked for
            findings[label] = traceback.format_exc()
        slowest = max(slowest, time.process_time() - began)
        count += 1
    return {
        "inputs": count,
        "slowest_s": round(slowest, 3),
        "grown_bytes": _peak_bytes() - before,
        "findings": findings,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps({name: replay(name) for name in targets.TARGETS}))
