"""The Llama architecture: config -> ModelConfig, and the names of its tensors.

Source: https://arxiv.org/abs/2302.13971 and transformers.models.llama: RMSNorm before attention
and feed-forward, rotary positions over whole heads, grouped keys and values, a gated feed-forward.
"""

from __future__ import annotations

from edgezoo_core.authoring import ACTIVATIONS, Config, TensorNames, layers


def model_config(config: Config) -> layers.ModelConfig:
    """Returns litert-torch's description of the model.

    Raises:
        ConfigError: The config asks for something that plain Llama does not have.
    """
    embedding_dim = config.integer("hidden_size", 4096)
    num_heads = config.integer("num_attention_heads", 32)
    has_attention_bias = config.flag("attention_bias", False)
    rope = config.rope()
    norm = layers.NormalizationConfig(
        type=layers.NormalizationType.RMS_NORM, epsilon=config.number("rms_norm_eps", 1e-6)
    )
    attention = layers.AttentionConfig(
        num_heads=num_heads,
        head_dim=config.integer("head_dim", embedding_dim // num_heads),
        num_query_groups=config.integer("num_key_value_heads", num_heads),
        rotary_base=rope.theta,
        rotary_percentage=rope.partial_factor,
        qkv_transpose_before_split=True,
        qkv_fused_interleaved=False,
        qkv_use_bias=has_attention_bias,
        output_proj_use_bias=has_attention_bias,
    )
    feed_forward = layers.FeedForwardConfig(
        type=layers.FeedForwardType.GATED,
        activation=layers.ActivationConfig(config.choice("hidden_act", ACTIVATIONS, "silu")),
        intermediate_size=config.integer("intermediate_size", 11008),
        use_bias=config.flag("mlp_bias", False),
    )
    config.inert("pretraining_tp", "splits matrix products into parts that add up to the same")
    return layers.ModelConfig(
        vocab_size=config.integer("vocab_size", 32000),
        num_layers=config.integer("num_hidden_layers", 32),
        max_seq_len=config.integer("max_position_embeddings", 2048),
        embedding_dim=embedding_dim,
        block_configs=layers.TransformerBlockConfig(
            attn_config=attention,
            ff_config=feed_forward,
            pre_attention_norm_config=norm,
            post_attention_norm_config=norm,
        ),
        final_norm_config=norm,
        lm_head_share_weight_with_embedding=config.flag("tie_word_embeddings", False),
    )


def tensor_names(config: Config, names: frozenset[str]) -> TensorNames:
    """Returns the names of the hub's layout."""
    return TensorNames(
        embedding="model.embed_tokens",
        attn_query_proj="model.layers.{}.self_attn.q_proj",
        attn_key_proj="model.layers.{}.self_attn.k_proj",
        attn_value_proj="model.layers.{}.self_attn.v_proj",
        attn_output_proj="model.layers.{}.self_attn.o_proj",
        ff_gate_proj="model.layers.{}.mlp.gate_proj",
        ff_up_proj="model.layers.{}.mlp.up_proj",
        ff_down_proj="model.layers.{}.mlp.down_proj",
        pre_attn_norm="model.layers.{}.input_layernorm",
        post_attn_norm="model.layers.{}.post_attention_layernorm",
        final_norm="model.norm",
        lm_head=None if config.flag("tie_word_embeddings", False) else "lm_head",
    )
