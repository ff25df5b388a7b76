"""Which tensors of a checkpoint make up which parameter, for the installed families."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
from litert_torch.generative.utilities.loader import ModelLoader
from litert_torch.generative.utilities.model_builder import DecoderOnlyModel
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from edgezoo_core import authoring, model, plugins
from edgezoo_core.checkpoint import open_folder
from edgezoo_core.config import Config
from edgezoo_core.errors import CheckpointError, PluginError
from edgezoo_core.mapping import TensorNames, check, map_parameters
from edgezoo_core.tensor_files import StoredTensor
from edgezoo_core.types import Model

#: Small, and different enough that one is not mistaken for another.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
#: Case -> family, and the model of transformers that it is compared with.
CASES = {
    "gemma": ("gemma", lambda: GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=16))),
    "tinyllama": ("tinyllama", lambda: LlamaForCausalLM(LlamaConfig(**SIZES))),
    "tinyllama, tied, biased": (
        "tinyllama",
        lambda: LlamaForCausalLM(
            LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
        ),
    ),
    "phi2": ("phi2", lambda: PhiForCausalLM(PhiConfig(**SIZES))),
}
TIED = ["gemma", "tinyllama, tied, biased"]
PREFIX = "transformer_blocks.1.atten_func.qkv_projection"


def plugin(family):
    return plugins.load({p.family: p for p in plugins.discover()}[family])


def randomize(module):
    # Norms of one and biases of zero would hide that they were not loaded.
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


@pytest.fixture(scope="module")
def references():
    """Case -> the model of transformers, with random weights."""
    torch.manual_seed(0)
    return {case: randomize(make()) for case, (_, make) in CASES.items()}


@pytest.fixture(scope="module")
def checkpoints(references, tmp_path_factory):
    """Case -> the checkpoint that the model saved."""
    found = {}
    for case, reference in references.items():
        folder = tmp_path_factory.mktemp("model")
        reference.save_pretrained(folder)
        found[case] = open_folder(folder, f"{CASES[case][0]}@saved")
    return found


def build(case, checkpoint, **fields):
    family = CASES[case][0]
    config = {**checkpoint.config, **fields}
    return model.build(plugin(family), Model(family, None, checkpoint.source), checkpoint, config)


def stored(name, shape):
    size_bytes = 4 * math.prod(shape)
    return StoredTensor(
        name, shape, "float32", "a file", None, size_bytes, partial(torch.zeros, shape)
    )


def edited(checkpoint, *, without=(), **extra):
    """The checkpoint less some tensors and plus others, given as name -> shape."""
    tensors = {n: t for n, t in checkpoint.tensors.items() if n not in without}
    tensors.update({n: stored(n, shape) for n, shape in extra.items()})
    return dataclasses.replace(checkpoint, tensors=tensors)


def problems(case, checkpoint):
    """Builds a model that does not fit, and returns the lines that say why."""
    with pytest.raises(CheckpointError) as e:
        build(case, checkpoint)
    head, *lines = e.value.message.split("\n  ")
    assert head == f"{checkpoint.source} does not fit the family's tensor names:"
    assert e.value.remedy.startswith("check that checkpoint and config.json belong together")
    return lines


# A checkpoint that fits.


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_read_before_it_is_asked_for(checkpoints, case):
    def refuse():
        raise AssertionError("a tensor was read")

    tensors = {n: dataclasses.replace(t, _get=refuse) for n, t in checkpoints[case].tensors.items()}
    authored = build(case, dataclasses.replace(checkpoints[case], tensors=tensors))
    assert all(p.is_meta for p in authored.module.parameters())
    with pytest.raises(AssertionError, match="a tensor was read"):
        next(iter(authored.weights.values())).read()


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_litert_torch_own_loader(checkpoints, case):
    checkpoint = checkpoints[case]
    authored = build(case, checkpoint)
    config = Config(checkpoint.config, "config.json")
    names = plugin(CASES[case][0]).tensor_names(
        authored.model, config, frozenset(checkpoint.tensors)
    )
    expected = DecoderOnlyModel(authored.module.config, 0)
    ModelLoader(str(checkpoint.folder), names).load(expected, strict=case not in TIED)
    if case in TIED:
        expected.lm_head.weight = expected.tok_embedding.weight
    found = model.materialize(authored).state_dict()
    assert found.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("case", TIED)
def test_tied_weights_are_one_tensor(checkpoints, case):
    module = model.materialize(build(case, checkpoints[case]))
    assert module.lm_head.weight is module.tok_embedding.weight


# A checkpoint that does not.


def test_removed_tensor_names_its_parameter(checkpoints):
    name = "model.layers.1.self_attn.k_proj.weight"
    (line,) = problems("tinyllama", edited(checkpoints["tinyllama"], without=[name]))
    assert line == f"missing {name} [16, 32] (for {PREFIX}.weight; nearest found: none like it)"


@pytest.mark.parametrize("case", CASES)
def test_renamed_tensor_is_found_by_its_likeness(checkpoints, case):
    name = "model.layers.1.self_attn.k_proj.weight"
    other = "model.layers.1.self_attn.key_proj.weight"
    rows = checkpoints[case].tensors[name].shape[0]
    lines = problems(case, edited(checkpoints[case], without=[name], **{other: (99, 32)}))
    assert lines == [
        f"missing {name} [{rows}, 32] (for {PREFIX}.weight; nearest found: {other} [99, 32])",
        f"unexpected {other} [99, 32]",
    ]


@pytest.mark.parametrize("case", CASES)
def test_extra_tensor_is_refused(checkpoints, case):
    extra = {"model.layers.2.mlp.extra.weight": (3, 5)}
    assert problems(case, edited(checkpoints[case], **extra)) == [
        "unexpected model.layers.2.mlp.extra.weight [3, 5]"
    ]


def test_layer_too_many_is_refused_as_one_error_of_bounded_length(checkpoints):
    extra = {
        n.replace("layers.1.", f"layers.{i}."): t.shape
        for n, t in checkpoints["gemma"].tensors.items()
        for i in (2, 3)
        if "layers.1." in n
    }
    lines = problems("gemma", edited(checkpoints["gemma"], **extra))
    assert len(lines) == 11
    assert all(line.startswith("unexpected model.layers.") for line in lines[:10])
    assert lines[10] == "and 8 more"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "name", ["model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq"]
)
def test_rope_frequencies_are_harmless(checkpoints, case, name):
    checkpoint = edited(checkpoints[case], **{name: (4,)})
    assert name not in {s for w in build(case, checkpoint).weights.values() for s in w.sources}


@pytest.mark.parametrize("case", CASES)
def test_likeness_to_a_harmless_name_is_not_enough(checkpoints, case):
    names = ("model.rotary_emb.inv_freq.weight", "model.my_rotary_emb.inv_freq", "freqs_cis_2")
    for name in names:
        assert problems(case, edited(checkpoints[case], **{name: (4,)})) == [
            f"unexpected {name} [4]"
        ]


@pytest.mark.parametrize("case", TIED)
def test_head_beside_a_tied_embedding_is_harmless(checkpoints, case):
    checkpoint = edited(checkpoints[case], **{"lm_head.weight": (61, 32)})
    authored = build(case, checkpoint)
    assert "lm_head.weight" not in {s for w in authored.weights.values() for s in w.sources}


def test_untied_model_needs_its_head(checkpoints):
    lines = problems("tinyllama", edited(checkpoints["tinyllama"], without=["lm_head.weight"]))
    (line,) = lines
    assert line.startswith("missing lm_head.weight [61, 32] (for lm_head.weight")


def test_config_of_another_size_is_refused(checkpoints):
    with pytest.raises(CheckpointError, match=r"\[61, 32\], expected \[62, 32\]") as e:
        build("gemma", checkpoints["gemma"], vocab_size=62)
    assert "config.json belong together" in e.value.remedy


# Hooks that do not cover the module.


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda w: w.pop("final_norm.weight"), "not covered final_norm.weight$"),
        (lambda w: w.update(ghost=w["final_norm.weight"]), "no such parameter ghost$"),
    ],
)
def test_load_hook_must_cover_the_module(checkpoints, edit, problem):
    authored = build("phi2", checkpoints["phi2"])
    weights = dict(authored.weights)
    edit(weights)
    with pytest.raises(PluginError, match=f"does not cover the module: {problem}") as e:
        check(authored.module, weights, checkpoints["phi2"])
    assert e.value.remedy == "correct the plugin's load hook"


def test_tensor_names_must_have_a_place_for_every_parameter(checkpoints):
    module = build("phi2", checkpoints["phi2"]).module
    with pytest.raises(PluginError, match=r"TensorNames\.lm_head is not given$") as e:
        map_parameters(module, checkpoints["phi2"], TensorNames(embedding="model.embed_tokens"))
    assert "tensor_names" in e.value.remedy


# Fused q, k and v.


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_qkv_rows_are_in_the_order_of_litert_torch(checkpoints, is_interleaved):
    case = "tinyllama, tied, biased"
    checkpoint = checkpoints[case]
    config = build(case, checkpoint).module.config
    attention = dataclasses.replace(
        config.block_config(0).attn_config, qkv_fused_interleaved=is_interleaved
    )
    block = dataclasses.replace(config.block_configs, attn_config=attention)
    module = authoring.decoder(dataclasses.replace(config, block_configs=block))
    fields = Config(checkpoint.config, "config.json")
    names = plugin("tinyllama").tensor_names(
        Model("tinyllama", None, ""), fields, frozenset(checkpoint.tensors)
    )
    weights = map_parameters(module, checkpoint, names)
    check(module, weights, checkpoint)
    for kind in ("weight", "bias"):
        parts = [
            checkpoint.tensor(f"model.layers.1.self_attn.{p}_proj.{kind}").read() for p in "qkv"
        ]
        expected = ModelLoader("", names, custom_loader=dict)._fuse_qkv(attention, *parts)
        assert torch.equal(weights[f"{PREFIX}.{kind}"].read(), expected)
        is_plain = torch.equal(torch.cat(parts), expected)
        assert is_plain != is_interleaved, "the two orders must differ, or the test shows nothing"


@pytest.fixture
def kaggle(checkpoints, tmp_path):
    """The Gemma checkpoint as Kaggle lays it out: two groups of keys and values, no config."""
    tensors = {n: t.read() for n, t in checkpoints["gemma"].tensors.items()}
    tensors["embedder.weight"] = tensors.pop("model.embed_tokens.weight")
    tensors["freqs_cis"] = torch.polar(torch.ones(64, 8), torch.ones(64, 8))
    for layer in range(SIZES["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.self_attn"
        parts = [tensors.pop(f"{prefix}.{p}_proj.weight") for p in "qkv"]
        tensors[f"{prefix}.qkv_proj.weight"] = torch.cat(parts)
    torch.save({"model_state_dict": tensors}, tmp_path / "gemma.ckpt")
    return dataclasses.replace(open_folder(tmp_path), config=checkpoints["gemma"].config)


def test_kaggle_layout_gives_the_weights_of_the_hub_layout(checkpoints, kaggle):
    expected = model.materialize(build("gemma", checkpoints["gemma"])).state_dict()
    authored = build("gemma", kaggle)
    assert authored.weights[f"{PREFIX}.weight"].sources == (
        "model.layers.1.self_attn.qkv_proj.weight",
    )
    found = model.materialize(authored).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_kaggle_layout_that_lacks_rows_is_refused(kaggle):
    name = "model.layers.0.self_attn.qkv_proj.weight"
    (line,) = problems("gemma", edited(kaggle, **{name: (96, 32)}))
    assert line.startswith(f"wrong shape of {name}: [96, 32], expected [128, 32] (for ")
