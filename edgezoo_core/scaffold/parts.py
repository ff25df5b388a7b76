"""The parts of a drafted author, as arguments of the classes that describe them."""

from __future__ import annotations

from edgezoo_core.scaffold.code import call, quoted
from edgezoo_core.scaffold.facts import LATER_NORMS, Facts, has_one_key_head
from edgezoo_core.scaffold.fields import literal

#: model_types whose norms store the distance from one, and whose embedding is scaled.
GEMMAS = ("gemma", "gemma2", "gemma3_text")
#: Fields that say, in some family, whether a projection has a bias.
_BIAS = ("use_bias", "bias", "enable_bias")
_QKV_BIAS = ("attention_bias", "use_qkv_bias", "qkv_bias", *_BIAS)
_OUTPUT_BIAS = ("attention_bias", *_BIAS)
_FEED_FORWARD_BIAS = ("mlp_bias", *_BIAS)


def norm(facts: Facts) -> str:
    """Returns the code of the norm that all parts share."""
    name = facts.fields.spelling("epsilon")
    epsilon = facts.fields.call("number", name) if name else "1e-5"
    norms = [n for n in facts.names.placed if n.endswith("norm")]
    if any(n in facts.names.biased for n in norms):
        return f"layer_norm({epsilon})"
    if name and name.startswith("layer_norm"):
        return f"layer_norm({epsilon}{', has_bias=False' if facts.source.shapes else ''})"
    return f"rms_norm({epsilon}{', zero_centered=True' if _is_gemma(facts) else ''})"


def activation(facts: Facts) -> list[str]:
    """Returns the statements that find the activation."""
    fields = facts.fields
    name = fields.spelling("activation") or "hidden_act"
    said, meant = facts.source.config.get(name), facts.known.meant.get(name)
    default = literal(facts.known.declared.get(name))
    fields.read.add(name)
    arguments = [quoted(name), "ACTIVATIONS", *([default] if default else [])]
    if isinstance(said, str) and isinstance(meant, str) and said != meant:
        # Gemma's first releases say gelu, and transformers reads the tanh form.
        arguments[1] = "meant"
        table = f"{{**ACTIVATIONS, {quoted(said)}: ACTIVATIONS[{quoted(meant)}]}}"
        return [f"    meant = {table}", call("config.choice", arguments, target="activation")]
    return [call("config.choice", arguments, target="activation")]


def attention(facts: Facts, *, has_rope: bool) -> dict[str, str]:
    """Returns the arguments of AttentionConfig."""
    fields = facts.fields
    arguments = {
        "num_heads": "num_heads",
        "head_dim": fields.call("integer", "head_dim", "embedding_dim // num_heads"),
        "num_query_groups": _query_groups(facts),
        "rope": "rope" if has_rope else "None",
    }
    fused = facts.names.placed.get("attn_fused_qkv_proj", "")
    if fused.endswith("query_key_value"):
        # By the habit of GPT-NeoX, BLOOM and Falcon: each group's queries, its key, its value.
        arguments |= {"qkv_transpose_before_split": "False", "qkv_fused_interleaved": "True"}
    first = "attn_fused_qkv_proj" if fused else "attn_query_proj"
    arguments["qkv_use_bias"] = facts.flag(_QKV_BIAS, first)
    arguments["output_proj_use_bias"] = facts.flag(_OUTPUT_BIAS, "attn_output_proj")
    if facts.has("attn_query_norm") and facts.has("attn_key_norm"):
        arguments |= {"query_norm_config": "norm", "key_norm_config": "norm"}
    if fields.has("attn_logit_softcapping"):
        arguments["logit_softcap"] = fields.call("optional", "attn_logit_softcapping")
    if fields.has("query_pre_attn_scalar"):
        arguments["scale"] = fields.call("number", "query_pre_attn_scalar") + " ** -0.5"
    elif fields.has("attention_multiplier"):
        arguments["scale"] = fields.call("number", "attention_multiplier")
    return {name: code for name, code in arguments.items() if code}


def _query_groups(facts: Facts) -> str:
    fields = facts.fields
    if has_one_key_head(fields):
        return f"1 if {fields.call('flag', 'multi_query')} else num_heads"
    return fields.integer("num_query_groups", "num_heads")


def feed_forward(facts: Facts) -> dict[str, str]:
    """Returns the arguments of FeedForwardConfig."""
    is_gated = facts.has("ff_gate_proj") or not facts.has("ff_up_proj")
    arguments = {
        "type": f"layers.FeedForwardType.{'GATED' if is_gated else 'SEQUENTIAL'}",
        "activation": "layers.ActivationConfig(activation)",
        "intermediate_size": facts.fields.integer("intermediate_size", "4 * embedding_dim"),
        "use_bias": facts.flag(_FEED_FORWARD_BIAS, "ff_up_proj"),
        "pre_ff_norm_config": "norm" if facts.has("pre_ff_norm") else "",
        "post_ff_norm_config": "norm" if facts.has("post_ff_norm") else "",
    }
    return {name: code for name, code in arguments.items() if code}


def block(facts: Facts) -> dict[str, str]:
    """Returns the arguments of BlockConfig."""
    # Beside a norm of its own for the feed-forward, the one after attention is for its output.
    norms_outputs = facts.has("pre_ff_norm") or not facts.has("pre_attn_norm")
    arguments = {
        "attn_config": "attention",
        "ff_config": "feed_forward",
        "pre_attention_norm_config": "norm" if facts.has("pre_attn_norm") else "",
        "post_attention_norm_config": "norm" if facts.has("post_attn_norm") else "",
        "parallel_residual": "True" if facts.is_parallel else "",
        "norm_outputs": "True" if norms_outputs and _has_later_norm(facts) else "",
    }
    return {name: code for name, code in arguments.items() if code}


def model(facts: Facts, *, has_windows: bool) -> dict[str, str]:
    """Returns the arguments of ModelConfig."""
    fields = facts.fields
    scale = "math.sqrt(embedding_dim)" if _is_gemma(facts) else ""
    if fields.has("embedding_multiplier"):
        scale = fields.call("number", "embedding_multiplier")
    arguments = {
        "vocab_size": fields.integer("vocab_size"),
        "num_layers": "num_layers",
        "max_seq_len": fields.integer("max_seq_len"),
        "embedding_dim": "embedding_dim",
        "embedding_scale": scale,
        "block_configs": "with_windows(block, windows)" if has_windows else "block",
        "final_norm_config": "norm",
        "lm_head_use_bias": "True" if "lm_head" in facts.names.biased else "",
        "lm_head_share_weight_with_embedding": tied(facts),
    }
    if fields.has("final_logit_softcapping"):
        arguments["final_logit_softcap"] = fields.call("optional", "final_logit_softcapping")
    return {name: code for name, code in arguments.items() if code}


def tied(facts: Facts) -> str:
    """Returns the code that says whether the head is the embedding."""
    says = facts.fields.value("tie_word_embeddings")
    has_head = facts.has("lm_head") or any("head" in u.name for u in facts.names.unplaced)
    facts.fields.read.add("tie_word_embeddings")
    if facts.source.shapes and not has_head and says is not True:
        return "True"
    default = facts.known.defaults.get("tie_word_embeddings", not has_head)
    return f'config.flag("tie_word_embeddings", {default})'


def _is_gemma(facts: Facts) -> bool:
    return facts.source.config.get("model_type") in GEMMAS


def _has_later_norm(facts: Facts) -> bool:
    return any(facts.has(name) for name in LATER_NORMS)
