"""Phi-2: the contract, and the published config.json."""

from edgezoo_core.config import Config
from edgezoo_core.testkit import PluginContract
from edgezoo_phi2 import phi2

# microsoft/phi-2's config.json.
PHI_2 = {
    "architectures": ["PhiForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 50256,
    "embd_pdrop": 0.0,
    "eos_token_id": 50256,
    "hidden_act": "gelu_new",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 10240,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "phi",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "resid_pdrop": 0.1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.37.0",
    "use_cache": True,
    "vocab_size": 51200,
}


class TestPhi2(PluginContract):
    family = "phi2"


def test_published_config_gives_the_published_model():
    from litert_torch.generative.examples.phi import phi2 as example

    config = Config(PHI_2, "config.json")
    ours, theirs = phi2.model_config(config), example.get_model_config()
    assert config.leftovers() == {}
    for size in ("vocab_size", "num_layers", "max_seq_len", "embedding_dim", "lm_head_use_bias"):
        assert getattr(ours, size) == getattr(theirs, size)
    block, other = ours.block_configs, theirs.block_configs
    assert block.ff_config == other.ff_config
    assert block.parallel_residual
    assert block.pre_attention_norm_config == other.pre_attention_norm_config
    for field in ("num_heads", "head_dim", "num_query_groups", "rotary_base", "rotary_percentage"):
        assert getattr(block.attn_config, field) == getattr(other.attn_config, field)
    assert block.attn_config.qkv_use_bias
    assert block.attn_config.output_proj_use_bias
