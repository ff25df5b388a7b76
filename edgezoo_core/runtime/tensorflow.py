"""TensorFlow's own interpreter: slower, and built apart from LiteRT, so that it can contradict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgezoo_core.decoder import Decoder
from edgezoo_core.errors import ArtifactError
from edgezoo_core.runtime.runner import Floats, is_cache


class TensorFlowRunner:
    """See `Runner`.

    Args:
        path: The .tflite.
        decoder: What it says about itself.
        num_threads: Threads of the CPU.

    Raises:
        ArtifactError: TensorFlow is not installed, or the file cannot be loaded.
    """

    def __init__(self, path: Path, decoder: Decoder, num_threads: int) -> None:
        try:
            import tensorflow
        except ImportError as e:
            raise ArtifactError(
                "TensorFlow is not installed", remedy="pip install 'edgezoo-core[tensorflow]'"
            ) from e
        try:
            interpreter = tensorflow.lite.Interpreter(model_path=str(path), num_threads=num_threads)
            self._runners: dict[str, Any] = {
                name: interpreter.get_signature_runner(name) for name in decoder.signatures
            }
        except (OSError, ValueError, RuntimeError) as e:
            raise ArtifactError(f"{path} cannot be loaded: {e}", remedy="convert it again") from e
        decode = decoder.signatures["decode"]
        self._shapes = {n: t.shape for n, t in decode.inputs.items() if is_cache(n)}
        self._logits: Any = None
        self.clear()

    def run(self, signature: str, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `Runner.run`."""
        outputs = self._runners[signature](**inputs, **self._cache)
        self._logits = outputs.pop("logits", self._logits)
        self._cache: dict[str, Floats] = {n: outputs[n] for n in self._shapes}

    def logits(self) -> Floats:
        """See `Runner.logits`."""
        result: Floats = self._logits.reshape(-1)
        return result

    def cache(self) -> dict[str, Floats]:
        """See `Runner.cache`."""
        return {name: values.copy() for name, values in self._cache.items()}

    def clear(self) -> None:
        """See `Runner.clear`."""
        self._cache = {n: np.zeros(shape, np.float32) for n, shape in self._shapes.items()}

    def close(self) -> None:
        """See `Runner.close`."""
        self._runners, self._cache = {}, {}
