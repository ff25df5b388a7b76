"""The Gemma 2 architecture: soft caps, norms behind each part, a window in every other layer.

Source: https://arxiv.org/abs/2408.00118 and transformers.models.gemma2.
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
    with_windows,
)


def model_config(config: Config) -> layers.ModelConfig:
    """Returns litert-torch's description of the model."""
    embedding_dim = config.integer("hidden_size", 2304)
    num_layers = config.integer("num_hidden_layers", 26)
    norm = rms_norm(config.number("rms_norm_eps", 1e-6), zero_centered=True)
    attention = AttentionConfig(
        num_heads=config.integer("num_attention_heads", 8),
        head_dim=config.integer("head_dim", 256),
        num_query_groups=config.integer("num_key_value_heads", 4),
        rope=config.rope(scaling=("linear", "llama3")),
        logit_softcap=config.optional("attn_logit_softcapping", 50.0),
        scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
    )
    activation = config.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")
    feed_forward = layers.FeedForwardConfig(
        type=layers.FeedForwardType.GATED,
        activation=layers.ActivationConfig(activation),
        intermediate_size=config.integer("intermediate_size", 9216),
        pre_ff_norm_config=norm,
        post_ff_norm_config=norm,
    )
    block = BlockConfig(
        attn_config=attention,
        ff_config=feed_forward,
        pre_attention_norm_config=norm,
        post_attention_norm_config=norm,
        norm_outputs=True,
    )
    windows = config.sliding_windows(num_layers, lambda i: i % 2 == 0, 4096)
    return layers.ModelConfig(
        vocab_size=config.integer("vocab_size", 256000),
        num_layers=num_layers,
        max_seq_len=config.integer("max_position_embeddings", 8192),
        embedding_dim=embedding_dim,
        embedding_scale=embedding_dim**0.5,
        block_configs=with_windows(block, windows),
        final_norm_config=norm,
        final_logit_softcap=config.optional("final_logit_softcapping", 30.0),
        lm_head_share_weight_with_embedding=config.flag("tie_word_embeddings", True),
    )


def tensor_names(config: Config, names: frozenset[str]) -> TensorNames:
    """Returns the names of the hub's layout."""
    return hub_names(
        tied=config.flag("tie_word_embeddings", True),
        pre_ff_norm="model.layers.{}.pre_feedforward_layernorm",
        post_ff_norm="model.layers.{}.post_feedforward_layernorm",
    )
