"""The Phi architecture: config -> ModelConfig, and the names of its tensors.

Source: transformers.models.phi. Attention and feed-forward stand side by side behind one LayerNorm,
rotary positions cover part of each head, every linear layer has a bias, the head included.
"""

from __future__ import annotations

from edgezoo_core.authoring import (
    ACTIVATIONS,
    AttentionConfig,
    BlockConfig,
    Config,
    Fold,
    TensorNames,
    hub_names,
    layer_norm,
    layers,
)


def model_config(config: Config) -> layers.ModelConfig:
    """Returns litert-torch's description of the model.

    Raises:
        ConfigError: The config asks for something that Phi-2 does not have.
    """
    config.only("qk_layernorm", False)
    embedding_dim = config.integer("hidden_size", 2048)
    num_heads = config.integer("num_attention_heads", 32)
    norm = layer_norm(config.number("layer_norm_eps", 1e-5))
    attention = AttentionConfig(
        num_heads=num_heads,
        head_dim=config.integer("head_dim", embedding_dim // num_heads),
        num_query_groups=config.integer("num_key_value_heads", num_heads),
        rope=config.rope(default_partial_factor=0.5, scaling=("linear", "llama3")),
        qkv_use_bias=True,
        output_proj_use_bias=True,
    )
    feed_forward = layers.FeedForwardConfig(
        type=layers.FeedForwardType.SEQUENTIAL,
        activation=layers.ActivationConfig(config.choice("hidden_act", ACTIVATIONS, "gelu_new")),
        intermediate_size=config.integer("intermediate_size", 8192),
        use_bias=True,
    )
    return layers.ModelConfig(
        vocab_size=config.integer("vocab_size", 51200),
        num_layers=config.integer("num_hidden_layers", 24),
        max_seq_len=config.integer("max_position_embeddings", 2048),
        embedding_dim=embedding_dim,
        block_configs=BlockConfig(
            attn_config=attention,
            ff_config=feed_forward,
            pre_attention_norm_config=norm,
            parallel_residual=True,
        ),
        final_norm_config=norm,
        lm_head_use_bias=True,
        lm_head_share_weight_with_embedding=config.flag("tie_word_embeddings", False),
    )


def folds(config: Config) -> list[Fold]:
    """Returns which activations feed which weights; an activation stands before fc2."""
    found = [Fold("pre_attention_norm", ("qkv", "up")), Fold("value", ("o",))]
    if not config.flag("tie_word_embeddings", False):
        found.append(Fold("final_norm", ("lm_head",)))
    return found


def tensor_names(config: Config, names: frozenset[str]) -> TensorNames:
    """Returns the names of the hub's layout."""
    return hub_names(
        # A tied head keeps a bias of its own.
        tied=False,
        attn_output_proj="model.layers.{}.self_attn.dense",
        ff_gate_proj=None,
        ff_up_proj="model.layers.{}.mlp.fc1",
        ff_down_proj="model.layers.{}.mlp.fc2",
        post_attn_norm=None,
        final_norm="model.final_layernorm",
    )
