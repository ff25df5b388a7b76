"""Measures a .tflite with LiteRT's interpreter."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgezoo_core import measuring
from edgezoo_core.measuring import Figures
from edgezoo_core.runtime import Session


class _Timed(Session):
    """Notes how long each step took."""

    def __init__(self, path: Path, threads: int) -> None:
        self.steps_s: list[float] = []
        super().__init__(path, threads)

    def _run(self, length: int, tokens: Sequence[int]) -> None:
        began = time.perf_counter()
        super()._run(length, tokens)
        self.steps_s.append(time.perf_counter() - began)


def measure(
    path: Path, threads: int, points: Sequence[Mapping[str, int]], decode: int
) -> dict[str, Any]:
    """Measures a file once.

    Args:
        path: The .tflite.
        threads: Of the interpreter.
        points: `depth`, tokens in the cache beforehand, and `prefill`, tokens of the prompt.
        decode: Tokens to decode behind them.

    Raises:
        ArtifactError: The file cannot be loaded, or a point does not fit its KV cache.
    """
    importlib.import_module("ai_edge_litert.compiled_model")  # no part of loading a model
    before = measuring.now()
    began = time.perf_counter()
    with _Timed(path, threads) as session:
        load_s = time.perf_counter() - began
        # What is set up at a signature's first run is no part of its speed.
        _figures(session, 0, max(p["prefill"] for p in points), decode)
        return measuring.readings(
            points, lambda d, p: _figures(session, d, p, decode), load_s, before
        )


def _figures(session: _Timed, depth: int, prefill: int, decode: int) -> Figures:
    # Speed does not depend on what is read, so any tokens will do.
    vocabulary = session.decoder.vocabulary
    tokens = [7919 * i % vocabulary for i in range(depth + prefill + 1)]
    session.reset()
    if depth:
        session.feed(tokens[:depth])
    session.steps_s.clear()
    began = time.perf_counter()
    # One more than is prefilled: decoding begins with the prompt's last token.
    token = int(session.feed(tokens[depth:]).argmax())
    first_token_s = time.perf_counter() - began
    prefill_s = sum(session.steps_s[:-1])
    for _ in range(decode - 1):
        token = int(session.feed([token]).argmax())
    decode_s = time.perf_counter() - began - prefill_s
    return prefill / prefill_s, decode / decode_s, first_token_s
