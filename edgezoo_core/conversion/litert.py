"""litert-torch's own path: torch.export, lowering, TFL passes, a float32 file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from litert_torch._convert.interface import Converter

from edgezoo_core.types import Signature

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROGRESS = "LITERT_TORCH_SHOW_PROGRESS"


def export(signatures: Sequence[Signature], output: Path) -> None:
    """Writes the signatures as one float32 .tflite; weights are shared between them.

    Args:
        signatures: Modules with example inputs, weights loaded.
        output: Where to write.
    """
    converter = Converter()
    for signature in signatures:
        converter.add_signature(
            signature.name, signature.module, sample_kwargs=dict(signature.inputs)
        )
    with _without_progress_lines():
        # Lightweight: large constants stay outside of the compiler's own copies.
        converter.convert(lightweight_conversion=True).export(str(output))


@contextmanager
def _without_progress_lines() -> Iterator[None]:
    # litert-torch prints its progress to stdout, which belongs to data.
    before = os.environ.get(_PROGRESS)
    os.environ[_PROGRESS] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PROGRESS]
        else:
            os.environ[_PROGRESS] = before
