"""A first author for a checkpoint, as the lines of its architecture file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgezoo_core.checkpoint import HUB_NAMES
from edgezoo_core.scaffold import facts as facts_of
from edgezoo_core.scaffold import parts, positions
from edgezoo_core.scaffold.code import call, keywords, quoted
from edgezoo_core.scaffold.facts import PARALLEL, Facts, has_one_key_head
from edgezoo_core.scaffold.fields import SPELLINGS, literal
from edgezoo_core.scaffold.knowledge import Knowledge
from edgezoo_core.scaffold.leftovers import REFUSED, Leftovers, Undecided, settle
from edgezoo_core.scaffold.source import Source

#: Differences from the names that most families have up to which the file states only those.
MOST_DIFFERENCES = 4
#: Flags of norms over q and k: once those norms are placed, the flag must be set.
_QK_NORM = ("qk_layernorm", "use_qk_norm")


@dataclass(frozen=True, slots=True)
class Draft:
    """What the architecture file says.

    Attributes:
        facts: What it was made from.
        leftovers: Config fields that it does not read.
        sample: What the contract's small model must say for this author to take it, where
            transformers' default is another: field -> code.
        statements: Body of `model_config`.
        names: The result of `tensor_names`.
        imports: What both take from `edgezoo_core.authoring`.
        has_math: Whether they need `math`.
    """

    facts: Facts
    leftovers: Leftovers
    sample: Mapping[str, str]
    statements: tuple[str, ...]
    names: str
    imports: tuple[str, ...]
    has_math: bool


def draft(source: Source) -> Draft:
    """Drafts an author."""
    facts = facts_of.find(source)
    fields = facts.fields
    rope = positions.rope(facts)
    windows = positions.windows(facts)
    body = [
        f"    embedding_dim = {fields.integer('embedding_dim')}",
        f"    num_heads = {fields.integer('num_heads')}",
        f"    num_layers = {fields.integer('num_layers')}",
        f"    norm = {parts.norm(facts)}",
        *([] if rope is None else [call("config.rope", rope, target="rope")]),
        _call("AttentionConfig", parts.attention(facts, has_rope=rope is not None), "attention"),
        *parts.activation(facts),
        _call("layers.FeedForwardConfig", parts.feed_forward(facts), "feed_forward"),
        _call("BlockConfig", parts.block(facts), "block"),
        *windows,
        _call("layers.ModelConfig", parts.model(facts, has_windows=bool(windows)), "return"),
    ]
    left = _leftovers(facts)
    statements = [*_declarations(left, facts.known), *body]
    names = _names(facts)
    code = "\n".join([*statements, names])
    return Draft(
        facts=facts,
        leftovers=left,
        sample={n: left.pinned[n] for n in _unusual(left, facts.known) if n not in REFUSED},
        statements=tuple(statements),
        names=names,
        imports=_imports(code),
        has_math="math." in code,
    )


def _call(function: str, arguments: dict[str, str], target: str) -> str:
    return call(function, keywords(arguments), target=target)


def _leftovers(facts: Facts) -> Leftovers:
    config, fields = facts.source.config, facts.fields
    left = settle(config, fields.read, facts.known)
    pinned, inert, undecided = dict(left.pinned), dict(left.inert), list(left.undecided)
    pinned |= {name: literal(fields.value(name)) for name in _implied(facts)}
    if has_one_key_head(fields):
        idle = [n for n in SPELLINGS["num_query_groups"] if n in config]
        inert |= dict.fromkeys(idle, "multi_query: all heads share one key and value")
        pinned = {n: code for n, code in pinned.items() if n not in idle}
    undecided = [u for u in undecided if u.name not in pinned.keys() | inert.keys()]
    kind = positions.scaling(facts)
    if kind:
        undecided.append(Undecided("rope_type", kind, "refused: not implemented"))
    return Leftovers(dict(sorted(pinned.items())), inert, tuple(undecided))


def _implied(facts: Facts) -> list[str]:
    """Returns the flags of what the draft does because of names and shapes."""
    fields = facts.fields
    flags = [n for n in (*PARALLEL, "new_decoder_architecture") if fields.has(n)]
    if facts.has("attn_query_norm"):
        flags += [n for n in _QK_NORM if fields.value(n) is True]
    return [n for n in flags if isinstance(fields.value(n), bool)]


def _unusual(left: Leftovers, known: Knowledge) -> dict[str, str]:
    """Returns the pinned fields that mean something else where they are absent: field -> code."""
    return {
        name: literal(known.defaults[name]) or "something else"
        for name, code in left.pinned.items()
        if known.defaults.get(name) is not None and literal(known.defaults[name]) != code
    }


def _declarations(left: Leftovers, known: Knowledge) -> list[str]:
    pins = [call("config.only", [quoted(n), code]) for n, code in left.pinned.items()]
    for name, meant in _unusual(left, known).items():
        why = quoted(f"absent it means {meant}")
        refusal = call("config.refused", [quoted(name), "None", why], target="raise", depth=2)
        pins.append(f"    if {quoted(name)} not in config:\n{refusal}")
    return [*pins, *(call("config.inert", [quoted(n), quoted(r)]) for n, r in left.inert.items())]


def _names(facts: Facts) -> str:
    """Returns the statement that names the tensors."""
    placed = {n: quoted(p) for n, p in facts.names.placed.items()}
    tied = parts.tied(facts)
    head = facts.names.placed.get("lm_head", "lm_head")
    usual = {n: quoted(p) for n, p in HUB_NAMES.items()}
    if "attn_fused_qkv_proj" in placed:
        usual = {n: p for n, p in usual.items() if not n.startswith(("attn_q", "attn_k", "attn_v"))}
    differing = {n: c for n, c in placed.items() if usual.get(n) != c}
    differing |= {n: "None" for n in usual if n not in placed and n != "lm_head"}
    has_bias = "lm_head" in facts.names.biased  # which has a name, even if the weight is shared
    if has_bias:
        differing["lm_head"] = quoted(head)
    if len(differing) <= MOST_DIFFERENCES and (has_bias or head == HUB_NAMES["lm_head"]):
        return _call("hub_names", {"tied": tied, **differing}, "return")
    if not has_bias:
        placed["lm_head"] = "None" if tied == "True" else f"None if {tied} else {quoted(head)}"
    return _call("TensorNames", placed, "return")


def _imports(code: str) -> tuple[str, ...]:
    always = {"AttentionConfig", "BlockConfig", "Config", "TensorNames", "layers", "ACTIVATIONS"}
    sometimes = ("hub_names", "layer_norm", "rms_norm", "with_windows")
    return tuple(sorted(always | {name for name in sometimes if f"{name}(" in code}))
