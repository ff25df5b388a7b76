"""LiteRT's own runtime.

Each buffer of the KV cache is a step's input and its output at once, so that a step writes its own
slots and copies none. Weights in the form that the CPU's kernels want are written to a file and
mapped: that form is then in memory once, and not once for each signature, and can be dropped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.options import CpuKernelMode, CpuOptions, Options

from edgezoo_core.decoder import Decoder, EntryPoint
from edgezoo_core.errors import ArtifactError
from edgezoo_core.runtime.runner import Floats, is_cache


class LiteRTRunner:
    """See `Runner`.

    Args:
        path: The .tflite.
        decoder: What it says about itself.
        num_threads: Threads of the CPU.
        is_plain: Whether the built-in kernels are used in place of XNNPACK's: slower, but they take
            the weights as they are, mapped from the file.

    Raises:
        ArtifactError: The file cannot be loaded.
    """

    def __init__(self, path: Path, decoder: Decoder, num_threads: int, *, is_plain: bool) -> None:
        try:
            # The system keeps the packed weights as long as they are mapped, and no longer.
            with tempfile.TemporaryDirectory(prefix="edgezoo-weights-") as folder:
                cpu = CpuOptions(
                    num_threads=num_threads,
                    kernel_mode=CpuKernelMode.BUILTIN if is_plain else None,
                    xnnpack_weight_cache_path="" if is_plain else f"{folder}/packed",
                )
                options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
                self._model: Any = CompiledModel.from_file(str(path), options=options)
            self._steps = {n: _Buffers(self._model, s) for n, s in decoder.signatures.items()}
        except (OSError, ValueError, RuntimeError) as e:
            raise ArtifactError(
                f"{path} cannot be loaded: {_reason(e)}", remedy="convert it again"
            ) from e
        decode = decoder.signatures["decode"]
        self._shapes = {n: t.shape for n, t in decode.inputs.items() if is_cache(n)}
        self._cache: dict[str, Any] = {
            n: self._model.create_input_buffer_by_name("decode", n) for n in self._shapes
        }
        self._vocabulary = decoder.vocabulary

    def run(self, signature: str, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `Runner.run`."""
        step = self._steps[signature]
        for name, values in inputs.items():
            step.inputs[name].write(values)
        self._model.run_by_name(
            signature, {**step.inputs, **self._cache}, {**step.outputs, **self._cache}
        )

    def logits(self) -> Floats:
        """See `Runner.logits`."""
        result: Floats = self._steps["decode"].outputs["logits"].read(self._vocabulary, np.float32)
        return result

    def cache(self) -> dict[str, Floats]:
        """See `Runner.cache`."""
        return {
            n: self._cache[n].read(int(np.prod(shape)), np.float32).reshape(shape)
            for n, shape in self._shapes.items()
        }

    def clear(self) -> None:
        """See `Runner.clear`."""
        for name, shape in self._shapes.items():
            self._cache[name].write(np.zeros(shape, np.float32))

    def close(self) -> None:
        """See `Runner.close`."""
        self._steps, self._cache = {}, {}
        self._model = None


class _Buffers:
    """A signature's buffers, but for the cache."""

    def __init__(self, model: Any, signature: EntryPoint) -> None:
        self.inputs, self.outputs = (
            {n: create(signature.name, n) for n in tensors if not is_cache(n)}
            for create, tensors in (
                (model.create_input_buffer_by_name, signature.inputs),
                (model.create_output_buffer_by_name, signature.outputs),
            )
        )


def _reason(error: Exception) -> str:
    """Returns the runtime's own words, without the places in its source."""
    lines = [line.removeprefix("└ ") for line in str(error).splitlines()]
    return next((line for line in lines if not line.startswith("ERROR: [")), "no reason given")
