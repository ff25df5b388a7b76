"""Measures a .litertlm with LiteRT-LM's own benchmark."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgezoo_core import measuring
from edgezoo_core.errors import ArtifactError
from edgezoo_core.measuring import Figures

litert_lm = importlib.import_module("litert_lm")  # an extra
litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)


def measure(
    path: Path, threads: int, points: Sequence[Mapping[str, int]], decode: int, cache: Path
) -> dict[str, Any]:
    """Measures a file once; it is loaded anew for each point.

    Args:
        path: The .litertlm.
        threads: Of its CPU backend.
        points: As in `interpreter`; `depth` is 0, since its benchmark begins with an empty cache.
        decode: Tokens to decode.
        cache: Folder for the weights as XNNPACK packs them; the first load fills it.

    Raises:
        ArtifactError: LiteRT-LM cannot load the file, or does less than it was asked to.
    """
    before = measuring.now()
    loads: list[float] = []

    def figures(depth: int, prefill: int) -> Figures:
        found = _run(path, threads, prefill, decode, cache)
        loads.append(found.init_time_in_second)
        return (
            found.last_prefill_tokens_per_second,
            found.last_decode_tokens_per_second,
            found.time_to_first_token_in_second,
        )

    return {**measuring.readings(points, figures, 0.0, before), "load_s": loads[0]}


def _run(path: Path, threads: int, prefill: int, decode: int, cache: Path) -> Any:
    try:
        found = litert_lm.Benchmark(
            str(path),
            backend=litert_lm.Backend.CPU(thread_count=threads),
            prefill_tokens=prefill,
            decode_tokens=decode,
            cache_dir=str(cache),
        ).run()
    except RuntimeError as e:
        raise ArtifactError(
            f"LiteRT-LM cannot load {path}",
            remedy=f"run `edgezoo check {path}`, or `litert-lm run`, which says why",
        ) from e
    done = (found.last_prefill_token_count, found.last_decode_token_count)
    if done != (prefill, decode):
        # It stops without an error once its cache has no room for another step.
        raise ArtifactError(
            f"LiteRT-LM read {done[0]} of {prefill} tokens and answered {done[1]} of {decode}",
            remedy="pass a smaller --prefill or --decode: its KV cache is too short for these",
        )
    return found
