"""Both engines on one model: the streaming one, and litert-torch's own path, its oracle."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import same_graph
import torch
from ai_edge_litert.interpreter import Interpreter
from safetensors.torch import save_file

from edgezoo_core import model, sources
from edgezoo_core.checkpoint import Checkpoint, open_folder
from edgezoo_core.conversion import litert, quantization, skeleton, streaming, tracing
from edgezoo_core.mapping import MappedTensor
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.types import Model, QuantPlan, RowSlice, silent


class Both:
    """A model traced once by each engine; files of it by plan.

    Args:
        make: Authors the model afresh, its mask cache built.
        checkpoint: Where its weights are.
        signatures_of: From its module to its signatures.
        folder: Where files go.
    """

    def __init__(
        self,
        make: Callable[[], model.AuthoredModel],
        checkpoint: Checkpoint,
        signatures_of: tracing.SignaturesOf,
        folder: Path,
    ) -> None:
        self.make = make
        self.checkpoint = checkpoint
        self.signatures_of = signatures_of
        self.folder = folder
        authored = make()
        self.shapes = {n: tuple(p.shape) for n, p in authored.module.named_parameters()}
        self.sources = {n: w.slices for n, w in authored.weights.items()}
        self.depth = len(authored.module.transformer_blocks)
        self.traced = tracing.trace_model(authored.module, signatures_of)
        self.module = model.materialize(make())
        self.float_file = folder / "litert.tflite"
        litert.export(signatures_of(self.module), self.float_file)

    def streamed(self, plan: QuantPlan, traced: Any = None) -> Path:
        """Writes the file of the streaming engine."""
        graphs = [t.graph(self.depth) for t in traced or self.traced]
        built = skeleton.build(graphs, plan, self.shapes, self.sources)
        output = self._output()
        output.write_bytes(built.head)
        os.truncate(output, built.program.size_bytes)
        streaming.check_streamable(built.program, self.checkpoint)
        files = streaming.fill(output, built.program, self.checkpoint, progress=silent)
        assert files == self.checkpoint.hash_files()
        return output

    def expected(self, plan: QuantPlan) -> Path:
        """Writes the file of litert-torch's path."""
        if all(rule.format is None for rule in plan.rules):
            return self.float_file
        output = self._output()
        quantization.quantize(self.float_file, output, plan, self.module)
        return output

    def compare(self, plan: QuantPlan) -> Path:
        """Demands the same graph of both, and returns the streaming engine's file."""
        streamed, expected = self.streamed(plan), self.expected(plan)
        unlike = same_graph.differences(streamed, expected)
        assert not unlike, "\n".join(unlike)
        found, wanted = outputs(streamed), outputs(expected)
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            assert np.isfinite(values).all(), name
            assert values.tobytes() == found[name].tobytes(), f"{name} differs in its bits"
        return streamed

    def _output(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder)) / "out.tflite"


def of_folder(folder: Path, options: SignatureOptions, scratch: Path) -> Both:
    """Traces the model in a folder, of a family that is installed."""
    source = sources.obtain(str(folder))

    def make() -> model.AuthoredModel:
        authored = source.author()
        model.prepare(authored, options)
        return authored

    plugin = source.load()

    def signatures_of(module: Any) -> Any:
        return plugin.signatures(source.model, module, options)

    return Both(make, source.checkpoint, signatures_of, scratch)


def of_module(
    make: Callable[[], torch.nn.Module],
    signatures_of: tracing.SignaturesOf,
    scratch: Path,
) -> Both:
    """Traces a module with random weights that are called as its parameters are."""
    checkpoint = random_checkpoint(make(), scratch)

    def authored() -> model.AuthoredModel:
        module = make()
        weights = mapped(module, checkpoint)
        return model.AuthoredModel(
            Model("test", None, "test"), module, weights, {}, config_account={}, warnings=()
        )

    return Both(authored, checkpoint, signatures_of, scratch)


def random_checkpoint(module: torch.nn.Module, folder: Path) -> Checkpoint:
    """Saves random weights for a module on meta."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        is_vector = parameter.dim() == 1
        tensors[name] = 1 + 0.2 * values if is_vector else values / parameter.shape[-1] ** 0.5
    save_file(tensors, folder / "model.safetensors")
    return open_folder(folder)


def mapped(module: torch.nn.Module, checkpoint: Checkpoint) -> Mapping[str, MappedTensor]:
    """Maps each parameter to the tensor of its name."""
    return {
        name: MappedTensor(
            tuple(p.shape), (RowSlice(name, 0, p.shape[0]),), {name: tuple(p.shape)}, checkpoint
        )
        for name, p in module.named_parameters()
    }


def outputs(path: Path, interpreter: Any = Interpreter) -> dict[str, Any]:
    """Runs every signature from its fifth position on: "signature output" -> values."""
    engine = interpreter(model_path=str(path), num_threads=1)
    found = {}
    for name in engine.get_signature_list():
        runner = engine.get_signature_runner(name)
        inputs = {
            key: _input(key, detail) for key, detail in sorted(runner.get_input_details().items())
        }
        found.update({f"{name} {key}": value for key, value in runner(**inputs).items()})
    return found


def _input(name: str, detail: Mapping[str, Any]) -> Any:
    random = np.random.default_rng(len(name))
    shape = tuple(detail["shape"])
    if name == "tokens":
        return random.integers(1, 120, shape, np.int32)
    if name == "input_pos":
        return np.arange(5, 5 + shape[0], dtype=np.int32)
    if name == "mask":
        return np.where(random.random(shape) < 0.5, 0, -1e30).astype(np.float32)
    return random.standard_normal(shape, np.float32)
