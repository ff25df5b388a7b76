"""Recipes on converted files: against litert-torch's own quantization, and against float32."""

from __future__ import annotations

import random

import numpy as np
import pytest
from litert_torch.generative.quantize import quant_attrs, quant_recipes
from litert_torch.quantize.translate_recipe import quantize_model, translate_to_ai_edge_recipe

from edgezoo_core import model, recipe, sources, zoo
from edgezoo_core.conversion import graph, litert, quantization
from edgezoo_core.errors import ConversionError, RecipeError
from edgezoo_core.runtime import Session
from edgezoo_core.shapes import SignatureOptions

FAMILIES = ["tinyllama", "gemma", "phi2"]
#: Recipe -> largest error of the logits, |quantized - float32| / |float32| over 24 positions.
#: These bounds catch a broken file, such as shifted scales or the weights of another layer.
BOUNDS = {
    "fp16": 2e-3,
    "weight_only_int8": 0.03,
    "dynamic_int8": 0.06,
    "dynamic_int8_linear": 0.06,
    "dynamic_int4_block32": 0.4,
    "dynamic_int4_block128": 0.5,
}


class FloatFile:
    """A float32 file of a two-layer model, its module, and how to quantize it again."""

    def __init__(self, family, saved, folder):
        self.family = family
        self.saved = saved
        self.folder = folder
        self.source = sources.obtain(str(saved.folder))
        self.authored = self.source.author()
        self.module = model.materialize(self.authored)
        options = SignatureOptions((4, 16), 64)
        signatures = self.source.load().signatures(self.source.model, self.module, options)
        self.path = folder / "float32.tflite"
        litert.export(signatures, self.path)

    def plan(self, text):
        chosen = recipe.resolve(str(text))
        return self.source.load().quant_recipe(self.source.model, self.module, chosen)

    def quantized(self, text):
        output = self.folder / f"{hash(str(text))}.tflite"
        quantization.quantize(self.path, output, self.plan(text), self.module)
        return output

    def logits(self, path):
        tokens = random.Random(5).choices(range(384), k=24)
        session = Session(path)
        first = session.feed(tokens[:5])
        return np.stack([first, *(session.feed([t]) for t in tokens[5:])])


@pytest.fixture(scope="module", params=FAMILIES)
def converted(request, save_model, tmp_path_factory):
    family = request.param
    # 128 and 256 input channels, so that every block size divides them.
    config = {"num_attention_heads": 4, "head_dim": 32} if family == "gemma" else {}
    saved = save_model(family, spread=0.5, **config)
    return FloatFile(family, saved, tmp_path_factory.mktemp(f"quantize-{family}"))


def litert_recipe(name):
    """litert-torch's own recipe of that name."""
    block = {
        "dynamic_int4_block32": quant_attrs.Granularity.BLOCKWISE_32,
        "dynamic_int4_block128": quant_attrs.Granularity.BLOCKWISE_128,
    }
    if name in block:
        config = quant_recipes.full_dynamic_recipe(
            weight_dtype=quant_attrs.Dtype.INT4, granularity=block[name]
        )
    else:
        config = {
            "fp16": quant_recipes.full_fp16_recipe,
            "weight_only_int8": quant_recipes.full_weight_only_recipe,
            "dynamic_int8": quant_recipes.full_dynamic_recipe,
        }[name]()
    return translate_to_ai_edge_recipe(config.generative_recipe)


@pytest.mark.parametrize(
    "name",
    ["fp16", "weight_only_int8", "dynamic_int8", "dynamic_int4_block32", "dynamic_int4_block128"],
)
def test_same_bytes_as_litert_torch(name, converted):
    expected = quantize_model(converted.path.read_bytes(), litert_recipe(name))
    assert converted.quantized(name).read_bytes() == bytes(expected)


@pytest.mark.parametrize("name", BOUNDS)
def test_logits_stay_near_float32(name, converted):
    exact = converted.logits(converted.path)
    lossy = converted.logits(converted.quantized(name))
    error = float(np.linalg.norm(lossy - exact) / np.linalg.norm(exact))
    print(f"{converted.family} {name}: relative error {error:.2e}, allowed {BOUNDS[name]:g}")
    assert 0 < error <= BOUNDS[name]


def formats(path):
    """Stored dtype and mode by (operator, shape, dequantized) of the decode signature."""
    uses = graph.weight_uses(graph.read(path))
    return [u.weight for u in uses if u.signature == "decode"]


def test_recipe_file_by_part_and_layer(converted, tmp_path):
    file = tmp_path / "mixed.toml"
    gate = 'gate = "none"' if converted.family != "phi2" else ""
    file.write_text(
        f"""
default = "dynamic_int8"
embedding = "weight_only_int8"
lm_head = "{"weight_only_int8" if converted.family == "gemma" else "fp16"}"
feedforward = "dynamic_int4_block32"
o = "none"
{gate}
[layers.-1]
attention = "dynamic_int4"
down = "dynamic_int4_block64"
"""
    )
    plan = converted.plan(file)
    expected = {
        (0, "qkv"): "dynamic_int8",
        (0, "o"): None,
        (0, "up"): "dynamic_int4_block32",
        (0, "down"): "dynamic_int4_block32",
        (1, "qkv"): "dynamic_int4",
        (1, "o"): "dynamic_int4",
        (1, "down"): "dynamic_int4_block64",
        (None, "embedding"): "weight_only_int8",
    }
    if gate:
        expected[0, "gate"] = None
    chosen = {(r.layer, r.part): r.format.name if r.format else None for r in plan.rules}
    assert {k: chosen[k] for k in expected} == expected

    # quantize() itself reads the file back and compares every weight with its rule; here the
    # count of what is stored how is taken from the file alone.
    stored = formats(converted.quantized(file))
    counts = {}
    for weight in stored:
        key = (weight.dtype, weight.block_size, weight.is_dequantized)
        counts[key] = counts.get(key, 0) + 1
    gated = converted.family != "phi2"
    head = {"gemma": ("int8", None, True)}.get(converted.family, ("float16", None, True))
    wanted = {
        ("int8", None, False): 1,  # qkv of layer 0
        ("float32", None, False): 3 if gated else 1,  # o of layer 0, and the gates
        ("int4", 32, False): 3,  # up of both layers, down of layer 0
        ("int4", 64, False): 1,  # down of layer 1
        ("int4", None, False): 2,  # attention of layer 1
        ("int8", None, True): 1,  # embedding
    }
    wanted[head] = wanted.get(head, 0) + 1
    assert counts == wanted
    assert np.isfinite(converted.logits(converted.quantized(file))).all()


def test_linear_only_recipe_keeps_the_embedding(converted):
    stored = formats(converted.quantized("dynamic_int8_linear"))
    assert [w.dtype for w in stored].count("float32") == 1
    assert [w.dtype for w in stored].count("int8") == len(stored) - 1


def test_growth_of_a_tied_model_is_what_the_files_show(converted):
    plan = converted.plan("dynamic_int8_linear")
    growth = recipe.growth_bytes(plan)
    if converted.family != "gemma":  # the only tied one of the three
        assert growth == 0
        return
    table = next(w for w in formats(converted.path) if w.shape[0] == 384)
    assert growth == table.shape[0] * table.shape[1] + 4 * table.shape[0]


def test_layers_of_equal_values_are_told_apart(save_model, tmp_path):
    # Models made deeper by repeating layers hold such twins.
    saved = save_model("tinyllama")
    first, second = saved.reference.model.layers
    second.load_state_dict(first.state_dict())
    saved.reference.save_pretrained(saved.folder)
    file = tmp_path / "second.toml"
    file.write_text('default = "none"\n[layers.1]\ndown = "dynamic_int8"\nqkv = "fp16"\n')
    converted = FloatFile("tinyllama", saved, tmp_path)
    uses = graph.weight_uses(graph.read(converted.quantized(file)))
    lossy = [(u.scope, u.weight.dtype) for u in uses if u.weight.dtype != "float32"]
    assert len(lossy) == 4  # qkv in three signatures; prefill ends before the last feed-forward
    assert all("TransformerBlock_1/" in scope for scope, _ in lossy)
    assert {dtype for scope, dtype in lossy if "feed_forward" in scope} == {"int8"}
    assert {dtype for scope, dtype in lossy if "feed_forward" not in scope} == {"float16"}


def test_block_that_does_not_divide_is_refused_before_work(save_model):
    saved = save_model("tinyllama", intermediate_size=320)
    with pytest.raises(RecipeError, match=r"layers\.0\.down \(320 input channels, blocks of 128\)"):
        zoo.convert(str(saved.folder), recipe="dynamic_int4_block128")


def test_a_weight_that_is_not_the_models_is_refused(converted, tmp_path):
    damaged = bytearray(converted.path.read_bytes())
    values = converted.module.transformer_blocks[0].ff.w2.weight.detach().numpy().tobytes()
    start = damaged.find(values)
    damaged[start : start + 4] = np.float32(123.0).tobytes()
    path = tmp_path / "damaged.tflite"
    path.write_bytes(damaged)
    with pytest.raises(ConversionError, match="no parameter of the model"):
        quantization.quantize(
            path, tmp_path / "out.tflite", converted.plan("dynamic_int8"), converted.module
        )


def test_a_file_that_ignores_the_recipe_is_refused(converted):
    plan = converted.plan("dynamic_int8")
    assignment = quantization.assign(graph.read(converted.path), plan, converted.module)
    other = converted.quantized("weight_only_int8")
    with pytest.raises(ConversionError, match="int8 with 384 scales, dequantized, expected int8"):
        quantization.check(graph.read(other), assignment)
