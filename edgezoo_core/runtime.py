"""Runs a .tflite with LiteRT: prefill, decode, generate.

The KV cache is held in two sets of buffers that take turns as a step's input and output, so a step
copies none of it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.options import CpuOptions, Options

from edgezoo_core import artifact
from edgezoo_core import decoder as decoders
from edgezoo_core.decoder import EntryPoint
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
    """A conversation's KV cache in an artifact; a context manager, which frees it.

    Args:
        path: The .tflite.
        num_threads: Threads of the interpreter; None takes one per core.

    Attributes:
        decoder: What the file says about itself.
        capacity: Slots of the KV cache.
        position: Slots that are filled.

    Raises:
        ArtifactError: The file cannot be loaded, or has no prefill and decode signatures.
    """

    def __init__(self, path: Path, num_threads: int | None = None) -> None:
        cpu = CpuOptions(num_threads=num_threads or os.cpu_count() or 1)
        # Read here first: the runtime's own words for what is no such file are none.
        self.decoder = decoders.read(artifact.read(path))
        try:
            self._model: Any = CompiledModel.from_file(
                str(path),
                options=Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu),
            )
        except (OSError, ValueError, RuntimeError) as e:
            raise ArtifactError(
                f"{path} cannot be loaded: {_reason(e)}", remedy="convert it again"
            ) from e
        found = self.decoder.signatures
        self._steps = {1: _Step(self._model, found["decode"])}
        for name, signature in found.items():
            if name.startswith("prefill"):
                step = _Step(self._model, signature)
                self._steps.setdefault(step.length, step)
        self._shapes = {n: t.shape for n, t in found["decode"].inputs.items() if _is_cache(n)}
        self._read, self._written = (
            {n: self._model.create_input_buffer_by_name("decode", n) for n in self._shapes}
            for _ in range(2)
        )
        self.capacity = self.decoder.cache.capacity
        self.reset()

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
        self._steps, self._read, self._written = {}, {}, {}
        self._model = None

    def reset(self) -> None:
        """Empties the cache."""
        self.position = 0
        for name, shape in self._shapes.items():
            self._read[name].write(np.zeros(shape, np.float32))

    def cache(self) -> dict[str, Floats]:
        """Returns a copy of the cache: `kv_cache_k_<i>`, `kv_cache_v_<i>`, float32."""
        return {
            n: self._read[n].read(int(np.prod(shape)), np.float32).reshape(shape)
            for n, shape in self._shapes.items()
        }

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
            self._run(self._steps[length], chunk)
        self._run(self._steps[1], tokens[-1:])
        return self._steps[1].logits()

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

    def _next_length(self, rest: int) -> int:
        """Picks the signature for what is left: its length, or 1 for decode."""
        room = self.capacity - self.position
        fitting = [n for n in self._steps if 1 < n <= room]
        full = [n for n in fitting if n <= rest]
        if full:
            return max(full)
        # A longer one is padded: what it writes behind the prompt is overwritten before it is seen.
        return min(fitting) if fitting and rest > 1 else 1

    def _run(self, step: _Step, tokens: Sequence[int]) -> None:
        step.run(tokens, self.position, self.capacity, self._read, self._written)
        self._read, self._written = self._written, self._read
        self.position += len(tokens)


class _Step:
    """One signature with its buffers, but for the cache."""

    def __init__(self, model: Any, signature: EntryPoint) -> None:
        self._model = model
        self._name = name = signature.name
        self.length = signature.inputs["input_pos"].shape[0]
        self._inputs, self._outputs = (
            {n: create(name, n) for n in tensors if not _is_cache(n)}
            for create, tensors in (
                (model.create_input_buffer_by_name, signature.inputs),
                (model.create_output_buffer_by_name, signature.outputs),
            )
        )

    def run(
        self,
        tokens: Sequence[int],
        position: int,
        capacity: int,
        read: Mapping[str, Any],
        written: Mapping[str, Any],
    ) -> None:
        padded = np.zeros((1, self.length), np.int32)
        padded[0, : len(tokens)] = tokens
        positions = np.arange(position, position + self.length, dtype=np.int32)
        self._inputs["tokens"].write(padded)
        self._inputs["input_pos"].write(positions)
        if "mask" in self._inputs:
            self._inputs["mask"].write(causal_mask(positions, capacity))
        self._model.run_by_name(self._name, {**self._inputs, **read}, {**self._outputs, **written})

    def logits(self) -> Floats:
        buffer = self._outputs["logits"]
        size = int(np.prod(buffer.get_tensor_details()["shape"]))
        result: Floats = buffer.read(size, np.float32)
        return result


def _reason(error: Exception) -> str:
    """Returns the runtime's own words, without the places in its source."""
    lines = [line.removeprefix("└ ") for line in str(error).splitlines()]
    return next((line for line in lines if not line.startswith("ERROR: [")), "no reason given")


def _is_cache(name: str) -> bool:
    return name.startswith("kv_cache")


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
