"""A small model is traced once; files of it by plan."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.conversion import checking, skeleton, streaming, tracing
from edgezoo_core.conversion.program import Program
from edgezoo_core.conversion.tracing import SignaturesOf
from edgezoo_core.model import AuthoredModel
from edgezoo_core.types import QuantPlan, SignatureSpec, silent


@dataclass(frozen=True, slots=True)
class File:
    """A converted file.

    Attributes:
        path: Where it is.
        program: Where its rows stand.
        plan: The format of every weight.
        signatures: As they stand in it.
    """

    path: Path
    program: Program
    plan: QuantPlan
    signatures: tuple[SignatureSpec, ...]


class Converted:
    """A model in one form: its graphs, and files by plan.

    Args:
        authored: The model, prepared, its parameters on meta; used up.
        signatures_of: From its module to its signatures.
        may_stamp: Whether the signatures' wrapper treats all layers alike.
        checkpoint: Where its weights are.
        folder: Where files go.
    """

    def __init__(
        self,
        authored: AuthoredModel,
        signatures_of: SignaturesOf,
        checkpoint: Checkpoint,
        folder: Path,
        *,
        may_stamp: bool,
    ) -> None:
        module: Any = authored.module
        self._checkpoint = checkpoint
        self._folder = folder
        self._depth = len(getattr(module, "transformer_blocks", ()))
        self._shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
        self._sources = {n: w.slices for n, w in authored.weights.items()}
        self._traced = tracing.trace_model(module, signatures_of, may_stamp=may_stamp)

    def file(self, name: str, plan: QuantPlan) -> File:
        """Writes the file of a plan under a name, and checks it as every conversion does."""
        graphs = [signature.graph(self._depth) for signature in self._traced]
        built = skeleton.build(graphs, plan, self._shapes, self._sources)
        path = self._folder / f"{name}.tflite"
        path.write_bytes(built.head)
        os.truncate(path, built.program.size_bytes)
        streaming.check_streamable(built.program, self._checkpoint)
        streaming.fill(path, built.program, self._checkpoint, progress=silent)
        checking.check(path, built.program, self._checkpoint)
        return File(path, built.program, plan, built.signatures)
