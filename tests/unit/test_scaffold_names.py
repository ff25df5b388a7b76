"""Names and shapes of published layouts, and what the guess makes of them.

The listings are those of transformers' own modules: hidden size 64, 4 heads of 16, 2 of them for
keys and values, 112 in the feed-forward, 96 tokens, two layers.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgezoo_core.scaffold.names import Sizes, guess

SIZES = Sizes(64, 4, 2, 16, 112, 96, 2)
#: Every head has a key and a value of its own.
MULTI_HEAD = replace(SIZES, num_query_groups=4)

LLAMA = """
model.embed_tokens.weight 96 64
model.layers.{}.input_layernorm.weight 64
model.layers.{}.self_attn.q_proj.weight 64 64
model.layers.{}.self_attn.k_proj.weight 32 64
model.layers.{}.self_attn.v_proj.weight 32 64
model.layers.{}.self_attn.o_proj.weight 64 64
model.layers.{}.post_attention_layernorm.weight 64
model.layers.{}.mlp.gate_proj.weight 112 64
model.layers.{}.mlp.up_proj.weight 112 64
model.layers.{}.mlp.down_proj.weight 64 112
model.norm.weight 64
"""
HEAD = "lm_head.weight 96 64\n"
QKV_BIAS = """
model.layers.{}.self_attn.q_proj.bias 64
model.layers.{}.self_attn.k_proj.bias 32
model.layers.{}.self_attn.v_proj.bias 32
"""
QK_NORM = """
model.layers.{}.self_attn.q_norm.weight 16
model.layers.{}.self_attn.k_norm.weight 16
"""
SANDWICH = """
model.layers.{}.pre_feedforward_layernorm.weight 64
model.layers.{}.post_feedforward_layernorm.weight 64
"""
LAYER_NORM_BIAS = """
model.layers.{}.input_layernorm.bias 64
model.layers.{}.post_attention_layernorm.bias 64
model.norm.bias 64
"""
PHI = """
model.embed_tokens.weight 96 64
model.layers.{}.input_layernorm.weight 64
model.layers.{}.input_layernorm.bias 64
model.layers.{}.self_attn.q_proj.weight 64 64
model.layers.{}.self_attn.q_proj.bias 64
model.layers.{}.self_attn.k_proj.weight 32 64
model.layers.{}.self_attn.k_proj.bias 32
model.layers.{}.self_attn.v_proj.weight 32 64
model.layers.{}.self_attn.v_proj.bias 32
model.layers.{}.self_attn.dense.weight 64 64
model.layers.{}.self_attn.dense.bias 64
model.layers.{}.mlp.fc1.weight 112 64
model.layers.{}.mlp.fc1.bias 112
model.layers.{}.mlp.fc2.weight 64 112
model.layers.{}.mlp.fc2.bias 64
model.final_layernorm.weight 64
model.final_layernorm.bias 64
lm_head.weight 96 64
lm_head.bias 96
"""
OLMO2 = (
    LLAMA.replace("model.layers.{}.input_layernorm.weight 64\n", "")
    + """
model.layers.{}.post_feedforward_layernorm.weight 64
model.layers.{}.self_attn.q_norm.weight 64
model.layers.{}.self_attn.k_norm.weight 32
"""
)
GPT_NEOX = """
gpt_neox.embed_in.weight 96 64
gpt_neox.layers.{}.input_layernorm.weight 64
gpt_neox.layers.{}.input_layernorm.bias 64
gpt_neox.layers.{}.post_attention_layernorm.weight 64
gpt_neox.layers.{}.post_attention_layernorm.bias 64
gpt_neox.layers.{}.attention.query_key_value.weight 192 64
gpt_neox.layers.{}.attention.query_key_value.bias 192
gpt_neox.layers.{}.attention.rotary_emb.inv_freq 8
gpt_neox.layers.{}.attention.masked_bias
gpt_neox.layers.{}.attention.dense.weight 64 64
gpt_neox.layers.{}.attention.dense.bias 64
gpt_neox.layers.{}.mlp.dense_h_to_4h.weight 112 64
gpt_neox.layers.{}.mlp.dense_h_to_4h.bias 112
gpt_neox.layers.{}.mlp.dense_4h_to_h.weight 64 112
gpt_neox.layers.{}.mlp.dense_4h_to_h.bias 64
gpt_neox.final_layer_norm.weight 64
gpt_neox.final_layer_norm.bias 64
embed_out.weight 96 64
"""
FALCON = """
transformer.word_embeddings.weight 96 64
transformer.h.{}.input_layernorm.weight 64
transformer.h.{}.input_layernorm.bias 64
transformer.h.{}.self_attention.query_key_value.weight 96 64
transformer.h.{}.self_attention.dense.weight 64 64
transformer.h.{}.mlp.dense_h_to_4h.weight 112 64
transformer.h.{}.mlp.dense_4h_to_h.weight 64 112
transformer.ln_f.weight 64
transformer.ln_f.bias 64
"""
PHI3 = """
model.embed_tokens.weight 96 64
model.layers.{}.self_attn.o_proj.weight 64 64
model.layers.{}.self_attn.qkv_proj.weight 128 64
model.layers.{}.mlp.gate_up_proj.weight 224 64
model.layers.{}.mlp.down_proj.weight 64 112
model.layers.{}.input_layernorm.weight 64
model.layers.{}.post_attention_layernorm.weight 64
model.norm.weight 64
lm_head.weight 96 64
"""
MPT = """
transformer.wte.weight 96 64
transformer.blocks.{}.norm_1.weight 64
transformer.blocks.{}.attn.Wqkv.weight 192 64
transformer.blocks.{}.attn.out_proj.weight 64 64
transformer.blocks.{}.norm_2.weight 64
transformer.blocks.{}.ffn.up_proj.weight 112 64
transformer.blocks.{}.ffn.down_proj.weight 64 112
transformer.norm_f.weight 64
"""
GPT2 = """
transformer.wte.weight 96 64
transformer.wpe.weight 128 64
transformer.h.{}.ln_1.weight 64
transformer.h.{}.attn.c_attn.weight 64 192
transformer.h.{}.attn.c_proj.weight 64 64
transformer.h.{}.ln_2.weight 64
transformer.h.{}.mlp.c_fc.weight 64 112
transformer.h.{}.mlp.c_proj.weight 112 64
transformer.ln_f.weight 64
"""
META = """
tok_embeddings.weight 96 64
layers.{}.attention_norm.weight 64
layers.{}.attention.wq.weight 64 64
layers.{}.attention.wk.weight 32 64
layers.{}.attention.wv.weight 32 64
layers.{}.attention.wo.weight 64 64
layers.{}.ffn_norm.weight 64
layers.{}.feed_forward.w1.weight 112 64
layers.{}.feed_forward.w2.weight 64 112
layers.{}.feed_forward.w3.weight 112 64
norm.weight 64
output.weight 96 64
"""


def layout(text: str, layers: int = 2) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for line in filter(None, text.splitlines()):
        name, *sizes = line.split()
        for layer in range(layers if "{}" in name else 1):
            shapes[name.replace("{}", str(layer))] = tuple(map(int, sizes))
    return shapes


@pytest.mark.parametrize(
    ("text", "sizes", "biased"),
    [
        pytest.param(LLAMA + HEAD, SIZES, set(), id="llama, mistral"),
        pytest.param(LLAMA, SIZES, set(), id="gemma"),
        pytest.param(
            LLAMA + HEAD + QKV_BIAS,
            SIZES,
            {"attn_query_proj", "attn_key_proj", "attn_value_proj"},
            id="qwen2",
        ),
        pytest.param(LLAMA + HEAD + QK_NORM, SIZES, set(), id="qwen3"),
        pytest.param(LLAMA + SANDWICH, SIZES, set(), id="gemma2"),
        pytest.param(
            LLAMA + HEAD + LAYER_NORM_BIAS,
            SIZES,
            {"pre_attn_norm", "post_attn_norm", "final_norm"},
            id="stablelm",
        ),
        pytest.param(GPT_NEOX, MULTI_HEAD, None, id="gpt-neox"),
        pytest.param(FALCON, replace(SIZES, num_query_groups=1), None, id="falcon"),
        pytest.param(MPT, MULTI_HEAD, set(), id="mpt"),
        pytest.param(META, SIZES, set(), id="meta's llama"),
    ],
)
def test_every_tensor_is_placed(text, sizes, biased):
    found = guess(layout(text), sizes)
    assert found.unplaced == ()
    assert found.missing == ()
    assert biased is None or found.biased == biased
    # Each name stands once: the map says again what the checkpoint has.
    placed = {f"{prefix}.weight" for prefix in found.placed.values()}
    placed |= {f"{found.placed[name]}.bias" for name in found.biased}
    buffers = ("inv_freq", "masked_bias")
    lines = (line.split()[0] for line in filter(None, text.splitlines()))
    assert placed == {name for name in lines if not name.endswith(buffers)}


def test_phi_is_placed_where_it_stands():
    found = guess(layout(PHI), SIZES)
    assert found.unplaced == ()
    assert found.placed == {
        "embedding": "model.embed_tokens",
        "pre_attn_norm": "model.layers.{}.input_layernorm",
        "attn_query_proj": "model.layers.{}.self_attn.q_proj",
        "attn_key_proj": "model.layers.{}.self_attn.k_proj",
        "attn_value_proj": "model.layers.{}.self_attn.v_proj",
        "attn_output_proj": "model.layers.{}.self_attn.dense",
        "ff_up_proj": "model.layers.{}.mlp.fc1",
        "ff_down_proj": "model.layers.{}.mlp.fc2",
        "final_norm": "model.final_layernorm",
        "lm_head": "lm_head",
    }
    assert found.biased == found.placed.keys() - {"embedding"}


def test_gate_and_up_of_meta_are_told_apart():
    placed = guess(layout(META), SIZES).placed
    assert placed["ff_gate_proj"] == "layers.{}.feed_forward.w1"
    assert placed["ff_up_proj"] == "layers.{}.feed_forward.w3"
    lone = META.replace("layers.{}.feed_forward.w3.weight 112 64\n", "")
    placed = guess(layout(lone), SIZES).placed
    assert "ff_gate_proj" not in placed
    assert placed["ff_up_proj"] == "layers.{}.feed_forward.w1"


@pytest.mark.parametrize(
    ("text", "sizes", "expected", "missing"),
    [
        pytest.param(
            OLMO2,
            SIZES,
            {
                "model.layers.{}.self_attn.q_norm.weight": "a norm over the whole projection",
                "model.layers.{}.self_attn.k_norm.weight": "a norm over the whole projection",
            },
            (),
            id="olmo2",
        ),
        pytest.param(
            PHI3,
            SIZES,
            {"model.layers.{}.mlp.gate_up_proj.weight": "gate and up in one tensor"},
            ("ff_up_proj",),
            id="phi3",
        ),
        pytest.param(
            GPT2,
            MULTI_HEAD,
            {
                "transformer.wpe.weight": "learned positions",
                "transformer.h.{}.attn.c_attn.weight": "stands transposed: expected [192, 64]",
                "transformer.h.{}.mlp.c_fc.weight": "stands transposed: expected [112, 64]",
                "transformer.h.{}.mlp.c_proj.weight": "stands transposed: expected [64, 112]",
            },
            ("attn_query_proj", "attn_key_proj", "attn_value_proj", "ff_up_proj", "ff_down_proj"),
            id="gpt2",
        ),
        pytest.param(
            LLAMA + "model.layers.{}.mlp.fc1.weight 112 64\n",
            SIZES,
            {
                "model.layers.{}.mlp.up_proj.weight": "each of",
                "model.layers.{}.mlp.fc1.weight": "could be ff_up_proj",
            },
            ("ff_up_proj",),
            id="two for one",
        ),
        pytest.param(
            LLAMA + "model.layers.0.mlp.experts.3.up_proj.weight 112 64\nx.y 3\n",
            SIZES,
            {
                "model.layers.{}.mlp.experts.3.up_proj.weight": "1 layers have it",
                "x.y": "its name is not known",
            },
            (),
            id="strange",
        ),
        pytest.param(
            LLAMA.replace("q_proj.weight 64", "q_proj.weight 80"),
            SIZES,
            {"model.layers.{}.self_attn.q_proj.weight": "config.json implies [64, 64]"},
            ("attn_query_proj",),
            id="shape",
        ),
        pytest.param(
            LLAMA + "model.layers.{}.self_attn.q_proj.bias 64\n",
            SIZES,
            {"model.layers.{}.self_attn.q_proj.bias": "a bias for all of attn_query_proj"},
            (),
            id="a bias on q alone",
        ),
        pytest.param(
            LLAMA.replace("up_proj.weight", "up_proj.qweight"),
            SIZES,
            {"model.layers.{}.mlp.up_proj.qweight": "its name is not known"},
            ("ff_up_proj",),
            id="quantized",
        ),
    ],
)
def test_what_does_not_fit_is_said(text, sizes, expected, missing):
    found = guess(layout(text), sizes)
    assert {u.name for u in found.unplaced} == expected.keys()
    for tensor in found.unplaced:
        assert expected[tensor.name] in tensor.reason
    assert found.missing == missing


def test_the_one_of_two_that_fits_is_taken():
    text = LLAMA + "model.layers.{}.mlp.gate.weight 8 64\n"  # a router of 8 experts
    found = guess(layout(text), SIZES)
    assert found.placed["ff_gate_proj"] == "model.layers.{}.mlp.gate_proj"
    assert [u.name for u in found.unplaced] == ["model.layers.{}.mlp.gate.weight"]


def test_a_second_norm_beside_a_parallel_residual_has_no_place():
    found = guess(layout(GPT_NEOX), MULTI_HEAD, is_parallel=True)
    assert {u.name.rpartition(".")[0] for u in found.unplaced} == {
        "gpt_neox.layers.{}.post_attention_layernorm"
    }


def test_layers_of_different_shapes_have_no_place():
    shapes = layout(LLAMA)
    shapes["model.layers.1.mlp.up_proj.weight"] = (120, 64)
    found = guess(shapes, SIZES)
    assert [u.reason for u in found.unplaced] == ["its shape differs between layers"]


def test_without_sizes_names_alone_decide():
    assert guess(layout(LLAMA), Sizes()).unplaced == ()


def test_no_names_place_nothing():
    assert guess({}, SIZES).placed == {}


def test_a_brace_in_a_name_is_not_taken_for_the_layer():
    found = guess({"model.{0}.embed_tokens.weight": (96, 64)}, SIZES)
    assert found.placed == {}
