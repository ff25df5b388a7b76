"""TinyLlama: the contract, and the published config.json."""

from edgezoo_core.config import Config
from edgezoo_core.testkit import PluginContract
from edgezoo_tinyllama import tinyllama

# TinyLlama/TinyLlama-1.1B-Chat-v1.0's config.json.
CHAT = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.35.0",
    "use_cache": True,
    "vocab_size": 32000,
}


class TestTinyLlama(PluginContract):
    family = "tinyllama"


def test_published_config_gives_the_published_model():
    from litert_torch.generative.examples.tiny_llama import tiny_llama

    config = Config(CHAT, "config.json")
    ours, theirs = tinyllama.model_config(config), tiny_llama.get_model_config()
    assert config.leftovers() == {}
    for size in ("vocab_size", "num_layers", "max_seq_len", "embedding_dim"):
        assert getattr(ours, size) == getattr(theirs, size)
    assert not ours.lm_head_share_weight_with_embedding
    block, other = ours.block_configs, theirs.block_configs
    assert block.ff_config == other.ff_config
    assert block.pre_attention_norm_config == other.pre_attention_norm_config
    for field in ("num_heads", "head_dim", "num_query_groups", "rotary_base", "rotary_percentage"):
        assert getattr(block.attn_config, field) == getattr(other.attn_config, field)
