"""The decomposition in one run, held against torch's own."""

from __future__ import annotations

import pytest
import torch
from litert_torch import fx_infra
from litert_torch.generative.examples.gemma import gemma2
from litert_torch.generative.examples.phi import phi2
from litert_torch.generative.examples.tiny_llama import tiny_llama

from edgezoo_core import defaults
from edgezoo_core.conversion import decomposition, tracing
from edgezoo_core.shapes import SignatureOptions

TABLE = fx_infra.decomp.pre_lower_decomp()
MODELS = {
    "tiny_llama": lambda: tiny_llama.TinyLlama(tiny_llama.get_fake_model_config(), 0),
    "gemma2": lambda: gemma2.Gemma2(gemma2.get_fake_model_config(), 0),
    "phi2": lambda: phi2.Phi2(phi2.get_fake_model_config(), 0),
}


class Program(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x):
        return self.function(self, x)


def export(function):
    return torch.export.export(Program(function), (torch.arange(6.0).reshape(3, 2),), strict=False)


def traced(name):
    with torch.device("meta"):
        module = MODELS[name]().eval()
    # Gemma 2's windows are cut out of a mask that the module holds.
    mask_as_input = name != "gemma2"
    module.build_mask_cache(0 if mask_as_input else 32)
    options = SignatureOptions((4,), 32, "default", mask_as_input)
    return [
        t.content for t in tracing.trace_model(module, lambda m: defaults.signatures(m, options))
    ]


@pytest.mark.parametrize("name", MODELS)
def test_same_graph_as_torch_decomposes(name, monkeypatch):
    in_one_run = []
    decompose = decomposition._decompose

    def spy(*arguments):
        in_one_run.append(arguments)
        return decompose(*arguments)

    monkeypatch.setattr(decomposition, "_decompose", spy)
    ours = traced(name)
    assert len(in_one_run) >= len(ours) == 2
    monkeypatch.setattr(decomposition, "_is_pure", lambda program: False)
    assert ours == traced(name)


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x.clone().add_(1),
        lambda self, x: self.seen.add_(1) + x,
        lambda self, x: (x.mul_(2), x + 1)[1],
        lambda self, x: (x + 1, 3),
        lambda self, x: x + torch.tensor([1.0, 2.0]),
    ],
    ids=["in place", "buffer", "input", "number out", "constant"],
)
def test_what_is_not_pure_is_left_to_torch(function):
    program = export(function)
    expected = program.run_decompositions(dict(TABLE))
    decomposed = decomposition.PureProgram.of(program).run_decompositions(dict(TABLE))
    assert str(decomposed.graph) == str(expected.graph)
    assert decomposed.graph_signature == expected.graph_signature


def test_names_of_inputs_stay():
    program = export(lambda self, x: torch.nn.functional.silu(x).add(self.seen))
    holders = [n for n in program.graph.nodes if n.op == "placeholder"]
    holders[1]._rename("sigmoid")  # as the decomposition of silu calls its own
    program.graph_signature.replace_all_uses("x", "sigmoid")
    made = decomposition._program(program, decomposition._decompose(program.graph_module, TABLE))
    assert [n.name for n in made.graph.nodes if n.op == "placeholder"] == ["b_seen", "sigmoid"]
    x = torch.randn(3, 2)
    torch.testing.assert_close(
        made.graph_module(torch.ones(2), x)[0], torch.nn.functional.silu(x) + 1
    )
