"""The Qwen2 architecture: Llama with biases on q, k and v, and windows in the upper layers.

Source: https://arxiv.org/abs/2407.10671 and transformers.models.qwen2.
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
    embedding_dim = config.integer("hidden_size", 4096)
    num_heads = config.integer("num_attention_heads", 32)
    num_layers = config.integer("num_hidden_layers", 32)
    norm = rms_norm(config.number("rms_norm_eps", 1e-6))
    attention = AttentionConfig(
        num_heads=num_heads,
        head_dim=config.integer("head_dim", embedding_dim // num_heads),
        num_query_groups=config.integer("num_key_value_heads", 32),
        rope=config.rope(scaling=("linear", "llama3")),
        qkv_use_bias=True,
    )
    feed_forward = layers.FeedForwardConfig(
        type=layers.FeedForwardType.GATED,
        activation=layers.ActivationConfig(config.choice("hidden_act", ACTIVATIONS, "silu")),
        intermediate_size=config.integer("intermediate_size", 22016),
    )
    block = BlockConfig(
        attn_config=attention,
        ff_config=feed_forward,
        pre_attention_norm_config=norm,
        post_attention_norm_config=norm,
    )
    has_windows = config.flag("use_sliding_window", False)
    first = config.integer("max_window_layers", 28)
    windows = config.sliding_windows(num_layers, lambda i: has_windows and i >= first, 4096)
    return layers.ModelConfig(
        vocab_size=config.integer("vocab_size", 151936),
        num_layers=num_layers,
        max_seq_len=config.integer("max_position_embeddings", 32768),
        embedding_dim=embedding_dim,
        block_configs=with_windows(block, windows),
        final_norm_config=norm,
        lm_head_share_weight_with_embedding=config.flag("tie_word_embeddings", False),
    )


def tensor_names(config: Config, names: frozenset[str]) -> TensorNames:
    """Returns the names of the hub's layout."""
    return hub_names(tied=config.flag("tie_word_embeddings", False))
