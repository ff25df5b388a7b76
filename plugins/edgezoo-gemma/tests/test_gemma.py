"""Gemma: the contract, the published config.json, and what only older ones say."""

import pytest

from edgezoo_core.config import Config
from edgezoo_core.errors import ConfigError
from edgezoo_core.testkit import PluginContract
from edgezoo_gemma import gemma

# google/gemma-2b's config.json.
GEMMA_2B = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0.dev0",
    "use_cache": True,
    "vocab_size": 256000,
}


class TestGemma(PluginContract):
    family = "gemma"


def read(**changes):
    return Config({**GEMMA_2B, **changes}, "config.json")


def test_published_config_gives_the_published_model():
    from litert_torch.generative.examples.gemma import gemma1

    config = read()
    ours, theirs = gemma.model_config(config), gemma1.get_model_config_2b()
    assert config.leftovers() == {}
    for size in ("vocab_size", "num_layers", "max_seq_len", "embedding_dim", "embedding_scale"):
        assert getattr(ours, size) == getattr(theirs, size)
    block, other = ours.block_configs, theirs.block_configs
    assert block.ff_config == other.ff_config
    for field in ("epsilon", "zero_centered", "type"):
        norm = block.pre_attention_norm_config
        assert getattr(norm, field) == getattr(other.pre_attention_norm_config, field)
    for field in ("num_heads", "head_dim", "num_query_groups", "rotary_base", "rotary_percentage"):
        assert getattr(block.attn_config, field) == getattr(other.attn_config, field)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
    ],
)
def test_every_spelling_of_the_activation_means_tanh(changes):
    expected = gemma.model_config(read()).block_configs.ff_config.activation
    assert gemma.model_config(read(**changes)).block_configs.ff_config.activation == expected


def test_an_activation_of_older_configs_that_gemma_lacks_is_refused_by_name():
    # transformers 5 has no such field any more, so that the contract does not vary it.
    with pytest.raises(ConfigError, match="hidden_activation"):
        gemma.model_config(read(hidden_activation="silu"))


def test_names_follow_the_layout():
    hub = gemma.tensor_names(read(), frozenset({"model.embed_tokens.weight"}))
    kaggle = gemma.tensor_names(read(), frozenset({"embedder.weight"}))
    assert hub.attn_query_proj == "model.layers.{}.self_attn.q_proj"
    assert hub.attn_fused_qkv_proj is None
    assert kaggle.attn_fused_qkv_proj == "model.layers.{}.self_attn.qkv_proj"
    assert kaggle.attn_query_proj is None
