"""What becomes of each field of config.json in the installed families."""

from __future__ import annotations

import copy

import pytest
import torch
from litert_torch.generative.layers.model_config import ActivationType
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from edgezoo_core import plugins
from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.config import Config
from edgezoo_core.config_fields import CHANGES_MATHEMATICS, INERT
from edgezoo_core.errors import ConfigError
from edgezoo_core.mapping import map_parameters
from edgezoo_core.model import check_leftovers
from edgezoo_core.types import Model

#: Family -> what its smallest config.json says.
EMPTY = {
    "gemma": {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"},
    "tinyllama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "phi2": {"architectures": ["PhiForCausalLM"], "model_type": "phi"},
}
REFERENCES = {
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "tinyllama": (LlamaConfig, LlamaForCausalLM),
    "phi2": (PhiConfig, PhiForCausalLM),
}
#: The config.json of models whose cards have none.
PUBLISHED = {
    "tinyllama-1.1b": {
        **EMPTY["tinyllama"],
        "hidden_size": 2048,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "phi-2": {
        **EMPTY["phi2"],
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 10240,
        "vocab_size": 51200,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.4,
        "tie_word_embeddings": False,
    },
}
PUBLISHED["tinyllama-1.1b-chat"] = PUBLISHED["tinyllama-1.1b"]

FAMILIES = pytest.mark.parametrize("family", EMPTY)
REMEDY = "use a checkpoint without it, or a plugin that implements it"


def installed():
    return {p.family: p for p in plugins.discover()}


def author(family, **fields):
    """Authors a model as a conversion does, and returns it with the warnings."""
    config = Config({**EMPTY[family], **fields}, "config.json of a test")
    module = plugins.load(installed()[family]).author(Model(family, None, "test"), config)
    return module, check_leftovers(config)


def model_config(family, **fields):
    module, warnings = author(family, **fields)
    assert warnings == []
    return module.config


def refused(family, **fields):
    """Returns the message that refuses the fields."""
    with pytest.raises(ConfigError, match="is not implemented by this family") as e:
        author(family, **fields)
    assert e.value.remedy == REMEDY
    assert e.value.message.startswith("config.json of a test: ")
    return e.value.message.removeprefix("config.json of a test: ")


# Sizes.


@FAMILIES
def test_empty_config_means_what_transformers_takes_it_for(family):
    make_config, make_model = REFERENCES[family]
    with torch.device("meta"):
        reference = make_model(make_config())
    expected = {n: tuple(t.shape) for n, t in reference.state_dict().items()}
    if reference.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    module, warnings = author(family)
    fields = Config(EMPTY[family], "config.json")
    hooks = plugins.load(installed()[family])
    names = hooks.tensor_names(Model(family, None, ""), fields, frozenset(expected))
    weights = map_parameters(module, Checkpoint("", None, None, {}, ()), names)
    assert {n: s for w in weights.values() for n, s in w.expected.items()} == expected
    assert warnings == []


@FAMILIES
def test_what_transformers_writes_is_accepted_whole(family):
    written = REFERENCES[family][0]().to_dict()
    assert model_config(family, **written) == model_config(family)


@FAMILIES
def test_parameters_on_the_card_are_those_of_the_model(family):
    cards = installed()[family].card.models
    for model_id, card in cards.items():
        fields = card.config or PUBLISHED[model_id]
        module = author(family, **fields)[0]
        found = sum(p.numel() for p in module.parameters())
        assert found == card.parameters, model_id
        assert module.config.max_seq_len == card.context_length, model_id


@FAMILIES
def test_longer_vocabulary_of_a_fine_tune_is_read(family):
    usual, longer = author(family)[0], author(family, vocab_size=70001)[0]
    assert longer.tok_embedding.weight.shape == (70001, usual.config.embedding_dim)
    assert longer.lm_head.weight.shape == (70001, usual.config.embedding_dim)


# Fields that change the mathematics.


@FAMILIES
@pytest.mark.parametrize("name", sorted(CHANGES_MATHEMATICS))
def test_such_a_field_is_accepted_where_it_is_not_used(family, name):
    for value in CHANGES_MATHEMATICS[name]:
        assert model_config(family, **{name: value}) == model_config(family)


@FAMILIES
@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling.rope_type = 'dynamic'",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "rope_parameters.rope_type = 'yarn'",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "factor": 4.0}},
            "rope_parameters.factor = 4.0",
        ),
        # Per kind of layer, as in Gemma 3.
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters.full_attention = ",
        ),
    ],
)
def test_rope_of_another_kind_is_refused_by_name(family, fields, problem):
    assert refused(family, **fields).startswith(problem)


@FAMILIES
def test_rope_theta_in_two_places_must_agree(family):
    same = {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert model_config(family, **same).block_config(0).attn_config.rotary_base == 5e5
    with pytest.raises(ConfigError, match=r"rope_theta is 10000\.0, but 500000\.0") as e:
        author(family, **{**same, "rope_theta": 1e4})
    assert "remove the other" in e.value.remedy


@FAMILIES
@pytest.mark.parametrize("activation", ["quick_gelu", "relu2", "GELU", None, 3])
def test_activation_that_is_not_implemented_is_refused(family, activation):
    if activation is None:
        assert model_config(family, hidden_act=None) == model_config(family)
    else:
        assert refused(family, hidden_act=activation).startswith(f"hidden_act = {activation!r} ")


@FAMILIES
@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"hidden_size": "2048"}, "hidden_size is '2048', expected a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected a positive integer"),
        ({"rope_theta": -1.0}, r"rope_theta is -1\.0, expected a positive number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', expected true or false"),
    ],
)
def test_malformed_value_is_refused_by_name(family, fields, problem):
    with pytest.raises(ConfigError, match=f"^config.json of a test: {problem}$") as e:
        author(family, **fields)
    assert e.value.remedy == "correct the checkpoint's config.json"


# Fields that nobody here knows.


def test_field_that_transformers_knows_is_refused_unless_it_has_the_default():
    # StableLM's class has it, and False for a default; the author of a Llama knows nothing of it.
    fields = {"model_type": "stablelm"}
    usual = model_config("tinyllama", **fields, use_qkv_bias=False)
    assert usual == model_config("tinyllama")
    message = refused("tinyllama", **fields, use_qkv_bias=True)
    assert message.startswith("use_qkv_bias = True ")
    assert "transformers' default is False" in message


@FAMILIES
def test_field_that_nobody_knows_gives_a_warning(family):
    warnings = author(family, flux_capacitor=1.21)[1]
    assert warnings == ["config.json: flux_capacitor = 1.21 is not known and was ignored"]


@FAMILIES
def test_field_that_nobody_knows_and_that_is_null_gives_none(family):
    assert author(family, flux_capacitor=None)[1] == []


@FAMILIES
def test_inert_fields_change_nothing(family):
    fields = {n: "anything" for n in INERT if n != "model_type"}
    assert model_config(family, **fields) == model_config(family)


def test_pretraining_tp_is_inert_in_llama_alone():
    assert model_config("tinyllama", pretraining_tp=2) == model_config("tinyllama")
    assert author("gemma", pretraining_tp=2)[1] == [
        "config.json: pretraining_tp = 2 is not known and was ignored"
    ]


def test_account_says_what_became_of_every_field():
    fields = {**EMPTY["tinyllama"], "hidden_size": 64, "pretraining_tp": 2, "flux_capacitor": 1}
    config = Config(fields, "config.json")
    plugins.load(installed()["tinyllama"]).author(Model("tinyllama", None, ""), config)
    account = config.account()
    assert account["read"] == ["hidden_size"]
    assert sorted(account["inert"]) == ["architectures", "model_type", "pretraining_tp"]
    assert all(account["inert"].values())
    assert account["unknown"] == {"flux_capacitor": 1}


# Spellings.


@FAMILIES
def test_older_and_newer_spellings_mean_the_same(family):
    older = {"torch_dtype": "bfloat16", "rope_theta": 5e5, "rope_scaling": None}
    newer = {
        "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    }
    assert model_config(family, **older) == model_config(family, **newer)
    assert model_config(family, **older) != model_config(family), "rope_theta must be read"


def test_older_and_newer_spellings_of_partial_rope_mean_the_same():
    older = {"partial_rotary_factor": 0.4, "rope_theta": 1e4}
    newer = {"rope_parameters": {"partial_rotary_factor": 0.4, "rope_theta": 1e4}}
    found = model_config("phi2", **older)
    assert found == model_config("phi2", **newer)
    assert found.block_config(0).attn_config.rotary_percentage == 0.4


@FAMILIES
def test_config_written_by_transformers_5_means_what_its_older_form_means(family):
    make_config = REFERENCES[family][0]
    rope = {"rope_theta": 5e5, **({"partial_rotary_factor": 0.25} if family == "phi2" else {})}
    newer = make_config(rope_parameters={"rope_type": "default", **rope}).to_dict()
    assert newer["rope_parameters"]["rope_theta"] == 5e5
    older = copy.deepcopy(newer)
    del older["rope_parameters"]
    assert model_config(family, **newer) == model_config(family, **older, **rope)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ActivationType.GELU_TANH),
        # The first releases said gelu and meant tanh, as transformers reads them.
        ({"hidden_act": "gelu"}, ActivationType.GELU_TANH),
        ({"hidden_act": "gelu", "hidden_activation": None}, ActivationType.GELU_TANH),
        (
            {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
            ActivationType.GELU_TANH,
        ),
        ({"hidden_act": "gelu_pytorch_tanh"}, ActivationType.GELU_TANH),
        ({"hidden_activation": "gelu_pytorch_tanh"}, ActivationType.GELU_TANH),
        ({"hidden_act": "gelu_new"}, ActivationType.GELU_TANH),
        ({"hidden_act": "silu"}, ActivationType.SILU),
        ({"hidden_act": "silu", "hidden_activation": "silu"}, ActivationType.SILU),
    ],
)
def test_activation_of_gemma(fields, expected):
    assert model_config("gemma", **fields).block_config(0).ff_config.activation.type == expected


@pytest.mark.parametrize(
    "fields",
    [
        # The newer field asks for the exact form, or for another function altogether.
        {"hidden_act": "gelu", "hidden_activation": "gelu"},
        {"hidden_activation": "gelu"},
        {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "silu"},
        {"hidden_activation": "quick_gelu"},
    ],
)
def test_activations_of_gemma_that_contradict_each_other_are_refused(fields):
    message = refused("gemma", **fields)
    assert message.startswith(f"hidden_activation = {fields['hidden_activation']!r} ")
