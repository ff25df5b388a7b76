"""The streaming engine against litert-torch's own path: the same graph, the same bits."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from typing import Any

import engines
import numpy as np
import pytest
import same_graph
import torch
from litert_torch._convert.interface import Converter
from litert_torch.generative.layers import attention
from safetensors.torch import load_file

from edgezoo_core import authoring, recipe
from edgezoo_core.conversion import shallow, tracing
from edgezoo_core.runtime import Session
from edgezoo_core.shapes import SignatureOptions

MIXED = """
default = "dynamic_int8"
embedding = "weight_only_int8"
lm_head = "{head}"
feedforward = "dynamic_int4_block32"
o = "none"
[layers.-1]
attention = "dynamic_int4"
down = "dynamic_int4_block64"
[layers.0]
qkv = "fp16"
"""
#: What is tied is stored twice; the quantizer makes the second and puts a DEQUANTIZE behind it.
TWICE = """
default = "dynamic_int8"
embedding = "fp16"
"""


@dataclass(frozen=True)
class Case:
    """A model, its source, the shapes to export, and the recipes to try on it."""

    family: str
    config: dict[str, Any]
    dtype: torch.dtype
    options: SignatureOptions
    recipes: tuple[str, ...]
    layout: str = "plain"


#: Five layers and six are stamped, two are traced whole. All recipes, layouts, masks are here.
CASES = {
    "llama-sharded-bf16": Case(
        "tinyllama",
        {"num_hidden_layers": 6},
        torch.bfloat16,
        SignatureOptions((8,), 64, "transposed", True),
        ("none", "dynamic_int8", "dynamic_int4_block32", "mixed"),
        "sharded",
    ),
    "gemma-kaggle-f16": Case(
        "gemma",
        {"num_hidden_layers": 5, "head_dim": 32},
        torch.float16,
        SignatureOptions((8,), 64, "default", False),
        ("fp16", "dynamic_int4_block128", "mixed"),
        "kaggle",
    ),
    "phi-f32": Case(
        "phi2",
        {"num_hidden_layers": 5},
        torch.float32,
        SignatureOptions((8,), 64, "transposed", False),
        ("weight_only_int8", "mixed"),
    ),
    "llama-tied-biased-bf16": Case(
        "tinyllama",
        {
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
        torch.bfloat16,
        SignatureOptions((8,), 64, "default", True),
        ("dynamic_int8_linear", "mixed", "twice"),
    ),
    "gemma-untied-f32": Case(
        "gemma",
        {"num_hidden_layers": 2, "head_dim": 32, "tie_word_embeddings": False},
        torch.float32,
        SignatureOptions((8,), 64, "transposed", True),
        ("none",),
    ),
}
PAIRS = [(name, chosen) for name, case in CASES.items() for chosen in case.recipes]


@pytest.fixture(scope="module")
def traced(save_model, tmp_path_factory):
    made: dict[str, engines.Both] = {}

    def trace(name):
        if name not in made:
            case = CASES[name]
            saved = save_model(case.family, case.dtype, **case.config)
            folder = LAYOUTS[case.layout](saved, tmp_path_factory.mktemp(name))
            made[name] = engines.of_folder(folder, case.options, tmp_path_factory.mktemp("files"))
        return made[name]

    return trace


def plain(saved, folder):
    return saved.folder


def sharded(saved, folder):
    saved.reference.to(torch.bfloat16).save_pretrained(folder, max_shard_size="400KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    return folder


def kaggle(saved, folder):
    """Gemma as Kaggle lays it out: a PyTorch file, q, k and v fused, the head left out."""
    tensors = load_file(saved.folder / "model.safetensors")
    tensors["embedder.weight"] = tensors.pop("model.embed_tokens.weight")
    tensors["freqs_cis"] = torch.polar(torch.ones(64, 8), torch.ones(64, 8))
    for layer in range(saved.reference.config.num_hidden_layers):
        prefix = f"model.layers.{layer}.self_attn"
        parts = [tensors.pop(f"{prefix}.{p}_proj.weight") for p in "qkv"]
        tensors[f"{prefix}.qkv_proj.weight"] = torch.cat(parts)
    torch.save({"model_state_dict": tensors}, folder / "gemma.ckpt")
    shutil.copy(saved.folder / "config.json", folder)
    return folder


LAYOUTS = {"plain": plain, "sharded": sharded, "kaggle": kaggle}


def plan_of(both, name, folder):
    if name not in ("mixed", "twice"):
        return recipe.meet(recipe.resolve(name), both.module, "test")
    path = folder / "mixed.toml"
    # Tied, the embedding dequantizes what the head computes with as it is.
    tied = both.module.lm_head.weight is both.module.tok_embedding.weight
    mixed = MIXED.format(head="dynamic_int8" if tied else "fp16")
    path.write_text(mixed if name == "mixed" else TWICE)
    return recipe.meet(recipe.resolve(str(path)), both.module, "test")


def conversation(path):
    """Logits of a prompt and of each token after it."""
    session = Session(path, num_threads=1)
    first = session.feed([5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
    return np.stack([first, *(session.feed([token]) for token in (31, 4, 159, 26))])


def test_cases_cover_everything():
    cases = CASES.values()
    # What is calibrated has the graph of its formats; test_smoothing holds its numbers.
    plain = {name for name in recipe.RECIPES if not recipe.resolve(name).is_smoothed}
    assert {r for c in cases for r in c.recipes} == {*plain, "mixed", "twice"}
    assert {c.family for c in cases if c.config["num_hidden_layers"] > shallow.SHALLOW} == {
        "gemma",
        "tinyllama",
        "phi2",
    }
    layouts = {(c.options.kv_layout, c.options.mask_as_input) for c in cases}
    assert len(layouts) == 4
    assert {c.dtype for c in cases} == {torch.bfloat16, torch.float16, torch.float32}


@pytest.mark.parametrize(("name", "chosen"), PAIRS)
def test_same_file_as_litert_torch(name, chosen, traced, tmp_path):
    both = traced(name)
    is_stamped = CASES[name].config["num_hidden_layers"] > shallow.SHALLOW
    assert [t.block_scope is not None for t in both.traced] == [is_stamped] * len(both.traced)
    plan = plan_of(both, chosen, tmp_path)
    streamed, expected = both.streamed(plan), both.expected(plan)
    assert same_graph.differences(streamed, expected) == []
    found, wanted = conversation(streamed), conversation(expected)
    assert np.isfinite(wanted).all()
    assert wanted.std() > 0.1
    assert found.tobytes() == wanted.tobytes(), np.abs(found - wanted).max()


def test_same_graph_sees_a_difference(traced, tmp_path):
    both = traced("llama-sharded-bf16")
    streamed = both.streamed(plan_of(both, "dynamic_int8", tmp_path))
    damaged = bytearray(streamed.read_bytes())
    damaged[-20] ^= 1  # a weight of the last matrix
    path = tmp_path / "damaged.tflite"
    path.write_bytes(damaged)
    assert same_graph.differences(path, streamed) != []
    assert same_graph.differences(path, both.expected(plan_of(both, "fp16", tmp_path))) != []


def test_same_file_as_the_plain_path_of_litert_torch(traced, tmp_path):
    both = traced("llama-tied-biased-bf16")
    converter = Converter()
    for signature in both.signatures_of(both.module):
        converter.add_signature(signature.name, signature.module, sample_kwargs=signature.inputs)
    expected = tmp_path / "plain.tflite"
    converter.convert(lightweight_conversion=False).export(str(expected))
    streamed = both.streamed(plan_of(both, "none", tmp_path))
    assert same_graph.differences(streamed, expected) == []
    assert conversation(streamed).tobytes() == conversation(expected).tobytes()


@pytest.mark.parametrize("name", ["llama-sharded-bf16", "gemma-kaggle-f16", "phi-f32"])
def test_stamped_graph_equals_the_fully_traced_one(name, traced, tmp_path):
    both = traced(name)
    last = len(both.traced) - 1
    full = tracing.trace_model(
        both.make().module, both.signatures_of, lambda index: index == last, may_stamp=False
    )
    assert [(t.name, t.block_scope) for t in full] == [("decode", None)]
    plan = plan_of(both, "none", tmp_path)
    stamped = both.streamed(plan, both.traced[last:])
    assert same_graph.differences(stamped, both.streamed(plan, full)) == []


def test_stamps_of_any_depth(traced, tmp_path):
    # From one trace of three blocks; what another depth needs is in its names alone.
    decode = traced("llama-sharded-bf16").traced[-1]
    sizes = {depth: len(decode.graph(depth).main.operators) for depth in (5, 6, 40)}
    block = sizes[6] - sizes[5]
    assert sizes[40] - sizes[6] == 34 * block
    graph = decode.graph(40)
    inputs = {e.name.decode() for e in graph.signature.inputs}
    assert {f"kv_cache_{kind}_{i}" for i in range(40) for kind in "kv"} <= inputs
    layers = {c.parameter for c in graph.constants.values() if ".ff.w1.weight" in c.parameter}
    assert layers == {f"transformer_blocks.{i}.ff.w1.weight" for i in range(40)}


def uniform(layers=6):
    """Describes a small Llama-like decoder of equal blocks."""
    norm = authoring.layers.NormalizationConfig(authoring.layers.NormalizationType.RMS_NORM)
    block = authoring.layers.TransformerBlockConfig(
        attn_config=authoring.layers.AttentionConfig(
            num_heads=4,
            head_dim=32,
            num_query_groups=2,
            rotary_percentage=1.0,
            qkv_transpose_before_split=True,
        ),
        ff_config=authoring.layers.FeedForwardConfig(
            authoring.layers.FeedForwardType.GATED,
            authoring.layers.ActivationConfig(authoring.layers.ActivationType.SILU),
            intermediate_size=256,
        ),
        pre_attention_norm_config=norm,
        post_attention_norm_config=norm,
    )
    return authoring.layers.ModelConfig(
        vocab_size=384,
        num_layers=layers,
        max_seq_len=64,
        embedding_dim=128,
        block_configs=[copy.deepcopy(block) for _ in range(layers)],
        final_norm_config=norm,
    )


class OwnForward(authoring.Decoder):
    """Reads its blocks in another order."""

    def _forward_with_embeds(self, input_embeds, *rest):
        return super()._forward_with_embeds(2 * input_embeds, *rest)


def another_activation():
    config = uniform()
    config.block_configs[2].ff_config.activation.type = authoring.layers.ActivationType.GELU
    return authoring.decoder(config)


def another_attribute():
    module = authoring.decoder(uniform())
    module.transformer_blocks[3].pre_atten_norm.eps = 0.5
    return module


def another_buffer():
    module = authoring.decoder(uniform())
    for number, block in enumerate(module.transformer_blocks):
        block.register_buffer("gain", torch.tensor([1.0 + (number == 4)]))
    return module


def own_forward():
    return authoring.decoder(uniform(), OwnForward)


def hooked():
    module = authoring.decoder(uniform())
    module.transformer_blocks[2].ff.register_forward_hook(lambda m, a, result: torch.tanh(result))
    return module


def patched():
    module = authoring.decoder(uniform())
    feedforward = module.transformer_blocks[2].ff
    original = feedforward.forward
    feedforward.forward = lambda x: 2 * original(x)
    return module


def own_forward_of_one_instance():
    module = authoring.decoder(uniform())
    stock = module.forward
    module.forward = lambda *inputs, **named: stock(*inputs, **named)
    return module


def hooked_as_a_whole():
    module = authoring.decoder(uniform())
    module.register_forward_hook(lambda m, a, result: result)
    return module


def shared_weight():
    module = authoring.decoder(uniform())
    blocks = module.transformer_blocks
    blocks[5].ff.w1.weight = blocks[1].ff.w1.weight
    return module


def few_layers():
    return authoring.decoder(uniform(3))


def test_equal_blocks_are_stamped():
    assert shallow.is_uniform(authoring.decoder(uniform()))


NOT_UNIFORM = [
    another_activation,
    another_attribute,
    another_buffer,
    own_forward,
    hooked,
    patched,
    own_forward_of_one_instance,
    hooked_as_a_whole,
    shared_weight,
    few_layers,
]


@pytest.mark.parametrize("make", NOT_UNIFORM)
def test_unequal_blocks_are_not_stamped(make):
    assert not shallow.is_uniform(make())


def decode_only(module):
    from edgezoo_core import defaults

    module.build_mask_cache(0)
    return defaults.signatures(module, SignatureOptions((4,), 32))[-1:]


def test_unequal_blocks_convert_right(tmp_path):
    both = engines.of_module(hooked, decode_only, tmp_path)
    assert both.traced[0].block_scope is None
    both.compare(recipe.meet(recipe.resolve("dynamic_int8"), both.module, "test"))


def test_second_interpreter_agrees(traced, tmp_path):
    from tensorflow import lite

    both = traced("phi-f32")
    for chosen in ("none", "dynamic_int8"):
        path = both.streamed(plan_of(both, chosen, tmp_path))
        with pytest.warns(UserWarning, match="deprecated"):
            second = engines.outputs(path, lite.Interpreter)
        logits, expected = second["decode logits"], engines.outputs(path)["decode logits"]
        error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
        print(f"{chosen}: relative error {error:.1e}, allowed 1e-4")
        assert error < 1e-4


class Memory:
    """What blocks were given in one pass, known by its positions."""

    positions = None
    seen = ()


class Remembering(attention.TransformerBlock):
    """Adds what a block some steps before was given."""

    def forward(self, x, rope=None, *rest):
        if self.memory.positions is not rope:
            self.memory.positions, self.memory.seen = rope, ()
        self.memory.seen = (*self.memory.seen, x)
        return super().forward(
            x + self.memory.seen[max(0, len(self.memory.seen) - 1 - self.lag)], rope, *rest
        )


def remembering(lag):
    module = authoring.decoder(uniform(5))
    memory = Memory()
    for block in module.transformer_blocks:
        block.__class__, block.memory, block.lag = Remembering, memory, lag
    return module


@pytest.mark.parametrize(("lag", "is_stamped"), [(0, True), (1, False), (2, False), (9, False)])
def test_blocks_that_remember_are_not_stamped(lag, is_stamped, tmp_path):
    assert shallow.is_uniform(remembering(lag))  # each is like the others, seen alone
    both = engines.of_module(lambda: remembering(lag), decode_only, tmp_path)
    assert (both.traced[0].block_scope is not None) == is_stamped
    both.compare(recipe.meet(recipe.resolve("dynamic_int8"), both.module, "test"))
