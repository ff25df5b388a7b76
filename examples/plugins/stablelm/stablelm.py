"""The StableLM architecture: LayerNorm, and rotary positions over a quarter of each head.

Source: https://arxiv.org/abs/2402.17834 and transformers.models.stablelm.
"""

from __future__ import annotations

from edgezoo_core.authoring import (
    ACTIVATIONS,
    AttentionConfig,
    BlockConfig,
    Config,
    TensorNames,
    hub_names,
    layer_norm,
    layers,
)


def model_config(config: Config) -> layers.ModelConfig:
    """Returns litert-torch's description of the model."""
    embedding_dim = config.integer("hidden_size", 2560)
    num_heads = config.integer("num_attention_heads", 32)
    config.only("qk_layernorm", False)
    norm = layer_norm(config.number("layer_norm_eps", 1e-5))
    attention = AttentionConfig(
        num_heads=num_heads,
        head_dim=config.integer("head_dim", embedding_dim // num_heads),
        num_query_groups=config.integer("num_key_value_heads", 32),
        rope=config.rope(default_partial_factor=0.25, scaling=("linear", "llama3")),
        qkv_use_bias=config.flag("use_qkv_bias", False),
    )
    feed_forward = layers.FeedForwardConfig(
        type=layers.FeedForwardType.GATED,
        activation=layers.ActivationConfig(config.choice("hidden_act", ACTIVATIONS, "silu")),
        intermediate_size=config.integer("intermediate_size", 6912),
    )
    is_parallel = config.flag("use_parallel_residual", False)
    return layers.ModelConfig(
        vocab_size=config.integer("vocab_size", 50304),
        num_layers=config.integer("num_hidden_layers", 32),
        max_seq_len=config.integer("max_position_embeddings", 4096),
        embedding_dim=embedding_dim,
        block_configs=BlockConfig(
            attn_config=attention,
            ff_config=feed_forward,
            pre_attention_norm_config=norm,
            post_attention_norm_config=layers.NormalizationConfig() if is_parallel else norm,
            parallel_residual=is_parallel,
        ),
        final_norm_config=norm,
        lm_head_share_weight_with_embedding=config.flag("tie_word_embeddings", False),
    )


def tensor_names(config: Config, names: frozenset[str]) -> TensorNames:
    """Returns the names of the hub's layout."""
    has_second_norm = not config.flag("use_parallel_residual", False)
    second = "model.layers.{}.post_attention_layernorm" if has_second_norm else None
    return hub_names(tied=config.flag("tie_word_embeddings", False), post_attn_norm=second)
