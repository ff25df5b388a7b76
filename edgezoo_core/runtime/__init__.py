"""Runs a .tflite: prefill, decode, generate."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from edgezoo_core import artifact, cpus
from edgezoo_core import decoder as decoders
from edgezoo_core.errors import ArtifactError
from edgezoo_core.runtime.runner import Floats, Runner

#: LiteRT with XNNPACK, LiteRT with its built-in kernels, TensorFlow's interpreter.
Runtime = Literal["litert", "litert-plain", "tensorflow"]

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
    """A conversation's KV cache in an artifact; a context manager, which frees it.

    Args:
        path: The .tflite.
        num_threads: Threads of the CPU; None takes one for each that it may use.
        runtime: What runs it. `litert-plain` takes least memory, and is slow.

    Attributes:
        decoder: What the file says about itself.
        capacity: Tokens that the KV cache holds.

    Raises:
        ArtifactError: The file cannot be loaded, or has no prefill and decode signatures.
    """

    def __init__(
        self, path: Path, num_threads: int | None = None, *, runtime: Runtime = "litert"
    ) -> None:
        # Read here first: the runtime's own words for what is no such file are none.
        self.decoder = decoders.read(artifact.read(path))
        self.capacity = self.decoder.cache.capacity
        self._lengths: dict[int, str] = {1: "decode"}
        for name, signature in self.decoder.signatures.items():
            if name.startswith("prefill"):
                self._lengths.setdefault(signature.inputs["input_pos"].shape[0], name)
        self._runner = _runner(runtime, path, self.decoder, num_threads or cpus.usable())
        self._tokens: list[int] = []
        self._runner.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model and its buffers; nothing can be run afterwards."""
        self._runner.close()

    @property
    def position(self) -> int:
        """Number of tokens in the cache."""
        return len(self._tokens)

    def reset(self) -> None:
        """Empties the cache."""
        self._tokens.clear()
        self._runner.clear()

    def rewind(self, position: int) -> None:
        """Forgets all tokens of the cache but the first `position`."""
        # What stands behind is overwritten before it is seen.
        del self._tokens[position:]

    def cache(self) -> dict[str, Floats]:
        """Returns a copy of the cache: `kv_cache_k_<i>`, `kv_cache_v_<i>`, float32."""
        return self._runner.cache()

    def feed(self, tokens: Sequence[int]) -> Floats:
        """Reads tokens into the cache, behind those that are there.

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
            self._run(length, chunk)
        self._run(1, tokens[-1:])
        return self._runner.logits()

    def read(self, tokens: Sequence[int]) -> Floats:
        """Makes the cache hold these tokens and no more; what it holds of them stays.

        See `feed`, which continues instead.
        """
        pairs = zip(self._tokens, tokens[:-1], strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        self.rewind(min(self.position, len(tokens) - 1) if same is None else same)
        return self.feed(tokens[self.position :])

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
            prompt: All that comes before the answer, token ids. What the cache holds of it, of an
                earlier turn say, is not read again.
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
        logits = self.read(prompt)
        for count in range(1, max_tokens + 1):
            token = choices.send(logits[:vocabulary])
            if token in stop:
                return
            yield token
            # An answer ends where LiteRT-LM ends it: with as many tokens in all as there are slots.
            if count == max_tokens or self.position + 1 >= self.capacity:
                return
            logits = self.feed([token])

    def _next_length(self, rest: int) -> int:
        """Picks the signature for what is left: its length, or 1 for decode."""
        room = self.capacity - self.position
        fitting = [n for n in self._lengths if 1 < n <= room]
        # A longer one is padded: what it writes behind the prompt is overwritten before it is seen.
        # More than half filled, it takes less time than several shorter ones.
        longer = min((n for n in fitting if n >= rest), default=None)
        shorter = max((n for n in fitting if n <= rest), default=None)
        if longer and (rest > longer // 2 or (not shorter and rest > 1)):
            return longer
        return shorter or 1

    def _run(self, length: int, tokens: Sequence[int]) -> None:
        name = self._lengths[length]
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(tokens)] = tokens
        positions = np.arange(self.position, self.position + length, dtype=np.int32)
        inputs: dict[str, npt.NDArray[np.int32] | Floats]
        inputs = {"tokens": padded, "input_pos": positions}
        if "mask" in self.decoder.signatures[name].inputs:
            inputs["mask"] = causal_mask(positions, self.decoder.cache.slots)
        self._runner.run(name, inputs)
        self._tokens.extend(tokens)


def _runner(runtime: Runtime, path: Path, decoder: decoders.Decoder, num_threads: int) -> Runner:
    if runtime == "tensorflow":
        from edgezoo_core.runtime.tensorflow import TensorFlowRunner

        return TensorFlowRunner(path, decoder, num_threads)
    from edgezoo_core.runtime.litert import LiteRTRunner

    return LiteRTRunner(path, decoder, num_threads, is_plain=runtime == "litert-plain")


def causal_mask(positions: npt.NDArray[np.int32], slots: int) -> Floats:
    """Returns the mask that lets each position see itself and what is before it.

    Args:
        positions: int32 [T], ascending.
        slots: Slots S of the KV cache.

    Returns:
        mask: float32 [1, 1, T, S], 0 where it may look and `MASKED` elsewhere.
    """
    sees = np.arange(slots)[None, :] <= positions[:, None]
    return np.where(sees, np.float32(0), MASKED)[None, None]
