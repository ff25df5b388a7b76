"""The Llama architecture: config -> ModelConfig, and the names of its tensors.

Source: https://arxiv.org/abs/2302.13971 and transformers.models.llama: RMSNorm before attention
and feed-forward, rotary positions over whole heads (scaled for a long
context in Llama 3), grouped keys and values, a gated feed-forward.
"""

from __future__ import annotations

from edgezoo_core.authoring import (
    ACTIVATIONS,
    AttentionConfig,
    BlockConfig,
    Config,
    TensorNames,
    hub_names,
    layers,
    rms_norm,
)


def model_config(config: Config) -> layers.ModelConfig:
    """Returns litert-torch's description of the model.

    Raises:
        ConfigError: The config asks for something that plain Llama does not have.
    """
    embedding_dim = config.integer("hidden_size", 4096)
    num_heads = config.integer("num_attention_heads", 32)
    has_attention_bias = config.flag("attention_bias", False)
    norm = rms_norm(config.number("rms_norm_eps", 1e-6))
    attention = AttentionConfig(
        num_heads=num_heads,
        head_dim=config.integer("head_dim", embedding_dim // num_heads),
        num_query_groups=config.integer("num_key_value_heads", num_heads),
        rope=config.rope(scaling=("linear", "llama3")),
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
        block_configs=BlockConfig(
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
    return hub_names(tied=config.flag("tie_word_embeddings", False))
