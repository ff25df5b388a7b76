"""The Gemma architecture: config -> ModelConfig, and the names of its tensors.

Source: https://arxiv.org/abs/2403.08295 and transformers.models.gemma. Against Llama: norms are
RMSNorm with a weight that is stored as its distance from one, the embedding is multiplied by the
square root of its width, the feed-forward is gated by GELU, and the head is the embedding.
"""

from __future__ import annotations

import math

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
        ConfigError: The config asks for something that Gemma does not have.
    """
    config.only("attention_bias", False)
    config.only("use_bidirectional_attention", None, False)
    embedding_dim = config.integer("hidden_size", 3072)
    num_heads = config.integer("num_attention_heads", 16)
    norm = rms_norm(config.number("rms_norm_eps", 1e-6), zero_centered=True)
    attention = AttentionConfig(
        num_heads=num_heads,
        head_dim=config.integer("head_dim", 256),
        num_query_groups=config.integer("num_key_value_heads", 16),
        rope=config.rope(scaling=("linear", "llama3")),
    )
    feed_forward = layers.FeedForwardConfig(
        type=layers.FeedForwardType.GATED,
        activation=layers.ActivationConfig(_activation(config)),
        intermediate_size=config.integer("intermediate_size", 24576),
    )
    return layers.ModelConfig(
        vocab_size=config.integer("vocab_size", 256000),
        num_layers=config.integer("num_hidden_layers", 28),
        max_seq_len=config.integer("max_position_embeddings", 8192),
        embedding_dim=embedding_dim,
        embedding_scale=math.sqrt(embedding_dim),
        block_configs=BlockConfig(
            attn_config=attention,
            ff_config=feed_forward,
            pre_attention_norm_config=norm,
            post_attention_norm_config=norm,
        ),
        final_norm_config=norm,
        lm_head_share_weight_with_embedding=config.flag("tie_word_embeddings", True),
    )


def _activation(config: Config) -> layers.ActivationType:
    # The first releases say hidden_act = "gelu" and mean the tanh approximation, as transformers
    # reads them; hidden_activation came later to say it rightly, and went again in transformers 5.
    meant = {**ACTIVATIONS, "gelu": layers.ActivationType.GELU_TANH}
    activation = config.choice("hidden_act", meant, "gelu_pytorch_tanh")
    newer = config.get("hidden_activation")
    if newer is not None and config.choice("hidden_activation", ACTIVATIONS) != activation:
        raise config.refused(
            "hidden_activation", newer, f"hidden_act is {config.get('hidden_act')!r}"
        )
    return activation


def tensor_names(config: Config, names: frozenset[str]) -> TensorNames:
    """Returns the names of the hub's layout, or of Kaggle's, which fuses q, k and v."""
    if "embedder.weight" in names:
        return hub_names(
            tied=True,
            embedding="embedder",
            attn_fused_qkv_proj="model.layers.{}.self_attn.qkv_proj",
        )
    return hub_names(tied=config.flag("tie_word_embeddings", True))
