"""What the streaming engine refuses, so that a wrong file cannot come out of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import engines
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from safetensors.torch import save_file

from edgezoo_core import authoring, defaults, recipe
from edgezoo_core.authoring import layers
from edgezoo_core.checkpoint import open_folder
from edgezoo_core.conversion import (
    floatgraph,
    merging,
    reading,
    recognition,
    skeleton,
    streaming,
    thin,
    tracing,
)
from edgezoo_core.conversion.floatgraph import Constant
from edgezoo_core.conversion.program import Matrix, Program, Vector
from edgezoo_core.conversion.standins import StandIns, install, looks_derived
from edgezoo_core.errors import CheckpointError, ConversionError
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.tensor_files import StoredTensor
from edgezoo_core.types import RowSlice, silent

# Modules whose weights reach the graph changed.


def config():
    """Describes one block with a square attention, where a transpose has the same shape."""
    norm = layers.NormalizationConfig(layers.NormalizationType.RMS_NORM)
    block = layers.TransformerBlockConfig(
        attn_config=layers.AttentionConfig(
            num_heads=4,
            head_dim=32,
            num_query_groups=4,
            rotary_percentage=1.0,
            qkv_transpose_before_split=True,
        ),
        ff_config=layers.FeedForwardConfig(
            layers.FeedForwardType.GATED,
            layers.ActivationConfig(layers.ActivationType.SILU),
            intermediate_size=256,
        ),
        pre_attention_norm_config=norm,
        post_attention_norm_config=norm,
    )
    return layers.ModelConfig(
        vocab_size=160,
        num_layers=1,
        max_seq_len=64,
        embedding_dim=128,
        block_configs=block,
        final_norm_config=norm,
    )


class Projection(torch.nn.Linear):
    """A linear layer whose weight is changed before it is used."""

    def __init__(self, change):
        super().__init__(128, 128, bias=False, device="meta")
        self.gain = torch.nn.Parameter(torch.empty(128, device="meta"))
        self.change = change

    def forward(self, x):
        return self.change(x, self.weight, self.gain)


linear = torch.nn.functional.linear
#: What happens to the weight, and what the message must name.
CHANGES = {
    "times a vector": lambda x, w, g: linear(x, w * g[:, None]),
    "transposed": lambda x, w, g: linear(x, w.T) + g,
    "not transposed": lambda x, w, g: x @ w + g,
    "flipped": lambda x, w, g: linear(x, w.flip(0)) + g,
    "rows in another order": lambda x, w, g: linear(x, w[torch.arange(127, -1, -1)]) + g,
    "sliced": lambda x, w, g: torch.cat([linear(x, w[:64]), linear(x, w[64:])], -1) + g,
    "added to itself": lambda x, w, g: linear(x, w + w) + g,
    "negated": lambda x, w, g: linear(x, -w) + g,
}
VECTOR_CHANGES = {
    "two added": lambda x, w, g, other: linear(x, w) + (g + other),
    "exponential": lambda x, w, g, other: linear(x, w) + torch.exp(g),
    "reversed": lambda x, w, g, other: linear(x, w) + g.flip(0),
    "half of it": lambda x, w, g, other: linear(x, w) + 0.5 * g,
    "squared": lambda x, w, g, other: linear(x, w) + g * g,
    "outer product": lambda x, w, g, other: linear(x, w) + (g[:, None] * other[None]).sum(0),
}


def decoder(change):
    module = authoring.decoder(config())
    module.transformer_blocks[0].atten_func.output_projection = Projection(change)
    module.build_mask_cache(0)
    return module.eval()


def decode_only(module):
    return defaults.signatures(module, SignatureOptions((4,), 32))[-1:]


def refusal(change):
    with pytest.raises(ConversionError) as caught:
        tracing.trace_model(decoder(change), decode_only)
    assert "--engine litert" in caught.value.remedy
    return caught.value.message


def test_what_leaves_the_weight_alone_is_traced():
    made = tracing.trace_model(decoder(lambda x, w, g: linear(x, w) * g), decode_only)
    held = made[0].graph(1).constants.values()
    assert {c.parameter for c in held if "output_projection" in c.parameter} == {
        "transformer_blocks.0.atten_func.output_projection.weight",
        "transformer_blocks.0.atten_func.output_projection.gain",
    }


@pytest.mark.parametrize("name", CHANGES)
def test_changed_matrix_is_refused(name):
    message = refusal(CHANGES[name])
    assert "output_projection.weight" in message or "the weight [128, 128]" in message, message


@pytest.mark.parametrize("name", VECTOR_CHANGES)
def test_changed_vector_is_refused(name):
    def change(x, w, g):
        other = model.final_norm.weight
        return VECTOR_CHANGES[name](x, w, g, other)

    model = decoder(change)
    with pytest.raises(ConversionError) as caught:
        tracing.trace_model(model, decode_only)
    assert "--engine litert" in caught.value.remedy
    message = caught.value.message
    assert "output_projection.gain" in message or "a constant [" in message, message


def test_parameters_of_the_wrapper_are_refused():
    module = authoring.decoder(config())
    module.build_mask_cache(0)
    (signature,) = decode_only(module)
    signature.module.bias = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ConversionError, match="decode has parameters of its own: bias") as caught:
        recognition.uses(None, signature, install(module))
    assert "--engine litert" in caught.value.remedy


# Stand-ins.

STANDINS = StandIns([("first", (8, 8)), ("norm", (16,)), ("second", (200, 100)), ("bias", (16,))])


def values(name):
    return STANDINS.by_name[name].values()


def test_standins_are_told_apart():
    assert STANDINS.matrix(float(values("first")[0])).parameter == "first"
    assert STANDINS.matrix(float(values("second")[0])).parameter == "second"
    for shift in (0, 1):
        found = STANDINS.vector(values("norm")[4:12] + np.float32(shift))
        assert (found.parameter, found.start, found.stop, found.shift) == ("norm", 4, 12, shift)


@pytest.mark.parametrize(
    "constant",
    [
        values("norm") + values("bias"),
        values("norm") * values("bias"),
        np.exp(values("norm")),
        values("norm")[::-1],
        np.roll(values("norm"), 1),
        np.concatenate([values("norm")[8:], values("bias")[:8]]),
        1 / values("norm"),
        np.tanh(values("norm")) * 30,
    ],
)
def test_derived_vectors_are_seen(constant):
    assert STANDINS.vector(constant) is None
    assert looks_derived(constant)


@pytest.mark.parametrize("value", [1.0, 0.0, -1.0, 2.0, 1.5, float("inf"), float("nan"), 30.0])
def test_ordinary_numbers_stand_for_nothing(value):
    assert STANDINS.matrix(value) is None
    assert STANDINS.vector(np.full(16, value, np.float32)) is None
    assert not looks_derived(np.full(16, value, np.float32))


def test_too_many_numbers_are_refused():
    with pytest.raises(ConversionError, match="more than the engine can tell apart") as caught:
        StandIns([("vector", (2**22,))])
    assert "--engine litert" in caught.value.remedy


def mlir(value, shape=(200, 100)):
    from litert_torch.backend import export_utils

    context = export_utils.create_ir_context()
    from litert_converter.mlir import ir

    kind = f"tensor<{'x'.join(map(str, shape))}xf32>"
    text = f"""
    func.func @main() -> {kind} {{
      %0 = "arith.constant"() {{value = dense<{value!r}> : {kind}}} : () -> {kind}
      return %0 : {kind}
    }}"""
    with context:
        return ir.Module.parse(text), context


def externalized(value, numbers=(), shape=(200, 100), uses=("second",)):
    module, context = mlir(value, shape)
    with context:
        recognition.externalize(
            module, STANDINS, frozenset(numbers), dict.fromkeys(uses, 1), "decode"
        )
    return str(module)


def test_uniform_constants_are_named_or_refused():
    standin = float(values("second")[0])
    assert 'group_name = "second"' in externalized(standin)
    reciprocal = np.float32(1) / np.float32(30)
    folded = float(np.float32(standin) * reciprocal)
    product = f'group_name = "second * {float(reciprocal).hex()}"'
    assert product in externalized(folded, [30.0])
    assert product in externalized(folded, [float(reciprocal)])
    assert 'group_name = "second * 0x1.e' in externalized(float(np.float32(standin * 30)), [30.0])
    assert "external" not in externalized(-1e9, [-1e9])  # a mask, say
    assert "external" not in externalized(7.25, shape=(3, 4))
    for value, numbers in [(7.25, []), (folded, []), (folded, [29.0]), (2 * standin, [3.0])]:
        with pytest.raises(ConversionError, match=r"a constant \[200, 100\] of decode") as caught:
            externalized(value, numbers)
        assert "--engine litert" in caught.value.remedy


def test_numbers_of_a_program_are_not_its_standins():
    # Or a product of two matrices would be one of them, times "a number".
    assert recognition.numbers(mlir(float(values("second")[0]))[0], STANDINS) == frozenset()
    assert recognition.numbers(mlir(7.25)[0], STANDINS) == {7.25}


# Graph and plan.


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model of one block, traced; its checkpoint."""
    folder = tmp_path_factory.mktemp("strict")

    def make():
        module = authoring.decoder(config())
        module.build_mask_cache(0)
        return module

    module = make()
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
    checkpoint = engines.random_checkpoint(module, folder)
    sources = {n: w.slices for n, w in engines.mapped(module, checkpoint).items()}
    plan = recipe.meet(recipe.resolve("dynamic_int8"), module, "test")
    (traced,) = tracing.trace_model(module, decode_only)
    return Small(traced, plan, shapes, sources, checkpoint)


@dataclasses.dataclass
class Small:
    traced: object
    plan: object
    shapes: object
    sources: object
    checkpoint: object

    def build(self, plan=None):
        return skeleton.build([self.traced.graph(1)], plan or self.plan, self.shapes, self.sources)


def test_a_lost_use_of_a_weight_is_refused(small):
    graph = small.traced.graph(1)
    uses = graph.uses()
    recognition.check(graph, uses, "decode")
    uses["final_norm.weight"] += 1
    del uses["transformer_blocks.0.ff.w2.weight"]
    with pytest.raises(ConversionError) as caught:
        recognition.check(graph, uses, "decode")
    assert "final_norm.weight is read 1 times, expected 2" in caught.value.message
    assert "ff.w2.weight is read 1 times, expected 0" in caught.value.message
    assert "--engine litert" in caught.value.remedy


def test_a_weight_that_is_no_parameter_is_refused(small):
    model = schema.ModelT.InitFromPackedBuf(small.traced.content, 0)
    dense = next(
        op
        for op in model.subgraphs[0].operators
        if model.operatorCodes[op.opcodeIndex].builtinCode == schema.BuiltinOperator.FULLY_CONNECTED
    )
    tensor = model.subgraphs[0].tensors[dense.inputs[1]]
    tensor.externalBuffer = 0
    from ai_edge_litert.tools import flatbuffer_utils

    content = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    with pytest.raises(ConversionError, match=r"of a FULLY_CONNECTED .* is no parameter") as caught:
        floatgraph.read(content, StandIns(small.traced.parameters))
    assert "--engine litert" in caught.value.remedy


def test_a_plan_that_lacks_a_rule_is_refused(small):
    lacking = dataclasses.replace(
        small.plan, rules=tuple(r for r in small.plan.rules if r.part != "down")
    )
    with pytest.raises(ConversionError, match=r"no rule for transformer_blocks\.0\.ff\.w2\.weight"):
        small.build(lacking)


def test_a_rule_without_an_operator_is_refused(small):
    extra = dataclasses.replace(small.plan.rules[0], parameter="absent.weight")
    plan = dataclasses.replace(small.plan, rules=(*small.plan.rules, extra))
    with pytest.raises(ConversionError, match=r"no operator for absent\.weight"):
        small.build(plan)


def test_a_quantizer_that_ignores_a_rule_is_refused(small, monkeypatch):
    stock = thin.quantization.run

    def run(source, groups, *rest):
        return stock(source, list(groups)[1:], *rest)

    monkeypatch.setattr(thin.quantization, "run", run)
    with pytest.raises(ConversionError, match="something that was not asked"):
        thin.quantize(merging.merge([small.traced.graph(1)]), small.plan, small.shapes)


# Values of the checkpoint.

HEIGHT, WIDTH = 6, 256


def program(format_name, vector_shift=0.0):
    """A matrix and a vector, without a graph around them."""
    fmt = recipe.FORMATS[format_name]
    bits = fmt.bits if fmt else 32
    scales = None if fmt is None or fmt.is_float else 0
    matrix = Matrix("w", format_name, HEIGHT, WIDTH, "", 1.0, 1024, HEIGHT * WIDTH * bits // 8,
                    scales)  # fmt: skip
    vector = Vector("n", 0, WIDTH, vector_shift, 8192)
    sources = {"w": (RowSlice("matrix", 0, HEIGHT),), "n": (RowSlice("norm", 0, WIDTH),)}
    return Program(1024, 16384, (matrix,), (vector,), sources)


def filled(folder, tensors, planned, save=None):
    if save:
        save(tensors, folder)
    else:
        save_file(tensors, folder / "model.safetensors")
    checkpoint = open_folder(folder)
    output = folder / "out.tflite"
    output.write_bytes(b"")
    os.truncate(output, planned.size_bytes)
    streaming.check_streamable(planned, checkpoint)
    streaming.fill(output, planned, checkpoint, progress=silent)
    return output.read_bytes()


def tensors(dtype=torch.float32):
    torch.manual_seed(3)
    return {"matrix": torch.randn(HEIGHT, WIDTH).to(dtype), "norm": torch.randn(WIDTH).to(dtype)}


@pytest.mark.parametrize("format_name", recipe.FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_unusable_value_of_a_matrix_is_refused(format_name, value, tmp_path):
    damaged = tensors(torch.bfloat16)
    damaged["matrix"][4, 33] = value
    with pytest.raises(CheckpointError, match=f"matrix in .* value {value} at row 4, column 33"):
        filled(tmp_path, damaged, program(format_name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_unusable_value_of_a_norm_is_refused(value, dtype, shift, tmp_path):
    damaged = tensors(dtype)
    damaged["norm"][7] = value
    with pytest.raises(CheckpointError, match=f"norm in .* value {value} at row 7, column 0"):
        filled(tmp_path, damaged, program("none", shift))


def test_what_float16_cannot_hold_is_refused(tmp_path):
    large = tensors()
    large["matrix"][1, 2] = 65504.0
    assert filled(tmp_path, large, program("fp16"))
    large["matrix"][5, 60] = 65536.0
    with pytest.raises(CheckpointError, match=r"65536.0 at row 5, column 60, which fp16") as caught:
        filled(tmp_path, large, program("fp16"))
    assert "another recipe" in caught.value.remedy


def test_the_second_shard_may_be_the_damaged_one(tmp_path):
    # Two threads work on chunks; the fault of either must come out, whichever is first.
    many = {f"t{i}": torch.zeros(HEIGHT, WIDTH) for i in range(40)}
    many["t17"][0, 0] = float("nan")
    matrices = tuple(
        Matrix(f"t{i}", "none", HEIGHT, WIDTH, "", 1.0, 1024 + i * 8192, 6144, None)
        for i in range(40)
    )
    sources = {n: (RowSlice(n, 0, HEIGHT),) for n in many}
    with pytest.raises(CheckpointError, match="t17 in"):
        filled(tmp_path, many, Program(1024, 1 << 19, matrices, (), sources))


def test_file_that_ends_early_is_refused(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    checkpoint = open_folder(tmp_path)
    output = tmp_path / "out.tflite"
    output.write_bytes(b"")
    size = (tmp_path / "model.safetensors").stat().st_size
    os.truncate(tmp_path / "model.safetensors", size - 100)
    with pytest.raises(CheckpointError, match=rf"ended at byte {size - 100} while it was read"):
        streaming.fill(output, program("none"), checkpoint, progress=silent)


def test_fault_of_the_disk_under_the_checkpoint_names_the_checkpoint():
    unreadable = Path("/proc/self/mem")  # its first page is nobody's: EIO
    tensor = StoredTensor("t", (1, 4), "float32", "mem", 0, 16, lambda: torch.zeros(1, 4))
    with pytest.raises(CheckpointError, match="mem cannot be read at byte 0: Input/output error"):
        reading.read_rows(unreadable, tensor, 0, 1)


def test_pytorch_file_equals_safetensors(tmp_path):
    for folder in ("bin", "safetensors"):
        (tmp_path / folder).mkdir()
    for format_name in ("none", "fp16", "dynamic_int8", "dynamic_int4_block32"):
        values = tensors(torch.bfloat16)
        expected = filled(tmp_path / "safetensors", values, program(format_name, 1.0))
        found = filled(
            tmp_path / "bin",
            values,
            program(format_name, 1.0),
            lambda t, folder: torch.save(t, folder / "pytorch_model.bin"),
        )
        assert found == expected
        assert any(expected[1024:])


def test_legacy_pytorch_file_is_refused_before_work(tmp_path):
    def save(values, folder):
        torch.save(values, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)

    with pytest.raises(CheckpointError, match="cannot be read in parts") as caught:
        filled(tmp_path, tensors(), program("none"), save)
    assert "matrix (for w)" in caught.value.message
    assert "safetensors" in caught.value.remedy
    assert "--engine litert" in caught.value.remedy


def test_spelled_constants_come_back():
    for constant in (Constant("a.b"), Constant("a.b", operation="/", operand=30.0)):
        assert Constant.parse(constant.spelled()) == constant
    with pytest.raises(ConversionError, match="names a constant"):
        Constant.parse("a.b ^ 2")
