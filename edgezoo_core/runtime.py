"""Runs a .tflite with the LiteRT interpreter: prefill, decode, generate."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from edgezoo_core.errors import ArtifactError

Floats = npt.NDArray[np.float32]

#: What a masked position adds to its attention score. Not the lowest float32, so that adding a
#: score to it cannot overflow.
MASKED = np.float32(-0.7 * np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Sampler:
    """How the next token is chosen from logits.

    Attributes:
        temperature: 0 takes the likeliest token; higher is more varied.
        top_k: Chooses among so many of the likeliest; 0 means all.
        seed: Makes the choice repeatable.
    """

    temperature: float = 0.0
    top_k: int = 40
    seed: int = 0

    def choices(self) -> Generator[int, Floats, None]:
        """A generator: send logits float32 [V], get a token. Prime it with `next`."""
        rng = np.random.default_rng(self.seed)
        token = 0
        while True:
            logits = yield token
            if self.temperature <= 0:
                token = int(np.argmax(logits))
                continue
            scores = logits.astype(np.float64) / self.temperature
            if 0 < self.top_k < len(scores):
                scores[scores < np.partition(scores, -self.top_k)[-self.top_k]] = -np.inf
            weights = np.exp(scores - scores.max())
            token = int(rng.choice(len(weights), p=weights / weights.sum()))


class Session:
    """A conversation's KV cache in an artifact.

    Args:
        path: The .tflite.
        num_threads: Threads of the interpreter; None takes one per core.

    Raises:
        ArtifactError: The file cannot be loaded, or has no prefill and decode signatures.
    """

    def __init__(self, path: Path, num_threads: int | None = None) -> None:
        try:
            self._interpreter = Interpreter(
                model_path=str(path), num_threads=num_threads or os.cpu_count()
            )
            names = self._interpreter.get_signature_list()
        except (ValueError, RuntimeError) as e:
            raise ArtifactError(f"{path} cannot be loaded: {e}", remedy="convert it again") from e
        if "decode" not in names or not any(n.startswith("prefill") for n in names):
            raise ArtifactError(
                f"{path} has signatures {sorted(names)}, expected prefill_<n> and decode",
                remedy="name a file that edgezoo or litert-torch converted",
            )
        self._decode = self._interpreter.get_signature_runner("decode")
        self._prefill: dict[int, Any] = {}
        for name in names:
            if name.startswith("prefill"):
                runner = self._interpreter.get_signature_runner(name)
                self._prefill[int(runner.get_input_details()["input_pos"]["shape"][0])] = runner
        details = self._decode.get_input_details()
        self._cache_shapes = {n: d["shape"] for n, d in details.items() if "kv_cache" in n}
        self._takes_mask = "mask" in details
        self.capacity = self._capacity(details)
        self.reset()

    def reset(self) -> None:
        """Empties the cache."""
        self.position = 0
        self._cache = {n: np.zeros(s, np.float32) for n, s in self._cache_shapes.items()}

    def feed(self, tokens: Sequence[int]) -> Floats:
        """Reads tokens into the cache.

        Args:
            tokens: One or more token ids.

        Returns:
            logits: float32 [V], of what follows the last token.

        Raises:
            ArtifactError: The cache has no room for them.
        """
        if self.position + len(tokens) > self.capacity:
            raise ArtifactError(
                f"{len(tokens)} tokens after {self.position} do not fit into a KV cache of"
                f" {self.capacity}",
                remedy="shorten the prompt, or convert with a larger --kv-cache",
            )
        rest = list(tokens[:-1])
        while rest:
            length = self._next_length(len(rest))
            chunk, rest = rest[:length], rest[length:]
            runner = self._decode if length == 1 else self._prefill[length]
            self._run(runner, chunk, length)
        logits: Floats = self._run(self._decode, tokens[-1:], 1)["logits"]
        return logits.reshape(-1)

    def generate(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sampler: Sampler | None = None,
        stop: Collection[int] = (),
        vocabulary: int | None = None,
    ) -> Iterator[int]:
        """Yields the tokens of an answer, stop token excluded.

        Args:
            prompt: Token ids.
            max_tokens: Longest answer; the cache's end may cut it earlier.
            sampler: How tokens are chosen; greedy by default.
            stop: Token ids that end the answer.
            vocabulary: Number of ids that the tokenizer knows; ids beyond it are never chosen
                (Phi-2's head is longer than its vocabulary).

        Raises:
            ArtifactError: The prompt does not fit.
        """
        choices = (sampler or Sampler()).choices()
        next(choices)
        logits = self.feed(prompt)
        for count in range(1, max_tokens + 1):
            token = choices.send(logits[:vocabulary])
            if token in stop:
                return
            yield token
            if count == max_tokens or self.position >= self.capacity:
                return
            logits = self.feed([token])

    def _capacity(self, details: Any) -> int:
        if self._takes_mask:
            return int(details["mask"]["shape"][-1])
        key, value = (details[n]["shape"] for n in ("kv_cache_k_0", "kv_cache_v_0"))
        # Default layout: k and v both [1, S, Hkv, D]; transposed: [1, Hkv, S, D], [1, Hkv, D, S].
        return int(key[1] if tuple(key) == tuple(value) else key[2])

    def _next_length(self, rest: int) -> int:
        """Picks the signature for what is left: its length, or 1 for decode."""
        room = self.capacity - self.position
        fitting = [n for n in self._prefill if n <= room]
        full = [n for n in fitting if n <= rest]
        if full:
            return max(full)
        # A longer one is padded: what it writes behind the prompt is overwritten before it is seen.
        return min(fitting) if fitting and rest > 1 else 1

    def _run(self, runner: Any, tokens: Sequence[int], length: int) -> dict[str, Any]:
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(tokens)] = tokens
        positions = np.arange(self.position, self.position + length, dtype=np.int32)
        inputs = {"tokens": padded, "input_pos": positions, **self._cache}
        if self._takes_mask:
            inputs["mask"] = causal_mask(positions, self.capacity)
        outputs: dict[str, Any] = runner(**inputs)
        self._cache = {n: outputs[n] for n in self._cache}
        self.position += len(tokens)
        return outputs


def causal_mask(positions: npt.NDArray[np.int32], capacity: int) -> Floats:
    """Returns the mask that lets each position see itself and what is before it.

    Args:
        positions: int32 [T], ascending.
        capacity: Slots S of the KV cache.

    Returns:
        mask: float32 [1, 1, T, S], 0 where it may look and `MASKED` elsewhere.
    """
    sees = np.arange(capacity)[None, :] <= positions[:, None]
    return np.where(sees, np.float32(0), MASKED)[None, None]
