"""Where each part of a model stands in its checkpoint, guessed from names and shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edgezoo_core.checkpoint import HARMLESS

_ATTENTION = r"(?:self_attn|self_attention|attention|attn|mixer)\."
_FEED_FORWARD = r"(?:mlp|ffn|feed_forward|feedforward)\."

#: Field of TensorNames -> what it is called inside a layer. Habits of Llama (the hub's and Meta's),
#: GPT-2, GPT-J, GPT-NeoX, Falcon, BLOOM, MPT, Phi, Qwen, Gemma, OLMo 2 and InternLM.
_IN_LAYER: Mapping[str, re.Pattern[str]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "attn_query_proj": _ATTENTION + r"(?:q_proj|query|query_proj|wq)",
        "attn_key_proj": _ATTENTION + r"(?:k_proj|key|key_proj|wk)",
        "attn_value_proj": _ATTENTION + r"(?:v_proj|value|value_proj|wv)",
        "attn_fused_qkv_proj": _ATTENTION + r"(?:qkv_proj|query_key_value|Wqkv|wqkv|qkv|c_attn)",
        "attn_output_proj": _ATTENTION + r"(?:o_proj|out_proj|output|dense|c_proj|wo)",
        "attn_query_norm": _ATTENTION + r"(?:q_norm|q_layernorm|query_norm|query_layernorm)",
        "attn_key_norm": _ATTENTION + r"(?:k_norm|k_layernorm|key_norm|key_layernorm)",
        "ff_gate_proj": _FEED_FORWARD + r"(?:gate_proj|gate|w1)",
        "ff_up_proj": _FEED_FORWARD + r"(?:up_proj|up|fc1|fc_in|c_fc|dense_h_to_4h|w3)",
        "ff_down_proj": _FEED_FORWARD + r"(?:down_proj|down|fc2|fc_out|c_proj|dense_4h_to_h|w2)",
        "pre_attn_norm": r"input_layernorm|attention_norm|ln_1|norm_1|ln1|norm1|ln_attn",
        "post_attn_norm": r"post_attention_layernorm|post_attention_norm|post_self_attn_layernorm"
        r"|ffn_norm|ln_2|norm_2|ln2|norm2|ln_mlp",
        "pre_ff_norm": r"pre_feedforward_layernorm|pre_mlp_layernorm",
        "post_ff_norm": r"post_feedforward_layernorm|post_mlp_layernorm",
    }.items()
}
#: The same outside of the layers.
_OUTSIDE: Mapping[str, re.Pattern[str]] = {
    name: re.compile(r"(?:\w+\.)*(?:" + pattern + ")")
    for name, pattern in {
        "embedding": "embed_tokens|wte|embed_in|tok_embeddings|word_embeddings|embedder",
        "final_norm": "norm|norm_f|ln_f|final_layernorm|final_layer_norm",
        "lm_head": "lm_head|embed_out|output|output_layer",
    }.items()
}
#: The order in which a map states them.
_ORDER = ("embedding", *_IN_LAYER, "final_norm", "lm_head")
#: Parts that litert-torch gives a bias together or not at all.
_TOGETHER: Sequence[tuple[str, ...]] = (
    ("attn_query_proj", "attn_key_proj", "attn_value_proj"),
    ("ff_gate_proj", "ff_up_proj", "ff_down_proj"),
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What config.json says about sizes; None where it does not say."""

    embedding_dim: int | None = None
    num_heads: int | None = None
    num_query_groups: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    num_layers: int | None = None

    def expected(self, name: str) -> tuple[int | None, ...]:
        """Returns the shape of the weight that a field of TensorNames stands for."""
        width, hidden = self.embedding_dim, self.intermediate_size
        queries = _product(self.num_heads, self.head_dim)
        keys = _product(self.num_query_groups, self.head_dim)
        fused = None if queries is None or keys is None else queries + 2 * keys
        shapes: Mapping[str, tuple[int | None, ...]] = {
            "attn_query_proj": (queries, width),
            "attn_key_proj": (keys, width),
            "attn_value_proj": (keys, width),
            "attn_fused_qkv_proj": (fused, width),
            "attn_output_proj": (width, queries),
            "attn_query_norm": (self.head_dim,),
            "attn_key_norm": (self.head_dim,),
            "ff_gate_proj": (hidden, width),
            "ff_up_proj": (hidden, width),
            "ff_down_proj": (width, hidden),
            "embedding": (self.vocab_size, width),
            "lm_head": (self.vocab_size, width),
        }
        return shapes.get(name, (width,))


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A tensor, or one of each layer, that no field of TensorNames was found for.

    Attributes:
        name: As the checkpoint spells it; `{}` stands for the layer.
        shape: Its dimensions, in the first layer that has it.
        reason: Why not.
    """

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class NameMap:
    """A first map of a checkpoint's names.

    Attributes:
        placed: Field of TensorNames -> prefix, without `.weight`; `{}` stands for the layer.
        biased: Fields whose part has a bias besides.
        unplaced: All other tensors.
    """

    placed: Mapping[str, str]
    biased: frozenset[str]
    unplaced: tuple[Unplaced, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Fields that every decoder needs and that no tensor was found for."""
        qkv = () if "attn_fused_qkv_proj" in self.placed else _TOGETHER[0]
        norm = "post_attn_norm" if "post_ff_norm" in self.placed else "pre_attn_norm"
        others = ("attn_output_proj", "ff_up_proj", "ff_down_proj", norm, "final_norm")
        return tuple(n for n in ("embedding", *qkv, *others) if n not in self.placed)


@dataclass(slots=True)
class _Part:
    """Tensors of one prefix: shape by kind (`weight`, `bias`, …) and layer (None outside)."""

    prefix: str
    shapes: dict[str, dict[int | None, tuple[int, ...]]] = field(default_factory=dict)

    def shape(self, kind: str = "weight") -> tuple[int, ...]:
        return next(iter(self.shapes[kind].values()))


def guess(
    shapes: Mapping[str, tuple[int, ...]], sizes: Sizes, *, is_parallel: bool = False
) -> NameMap:
    """Places the tensors of a checkpoint, as far as names and shapes agree.

    Args:
        shapes: Shape by name of tensor.
        sizes: What the shapes are held against.
        is_parallel: Whether attention and feed-forward stand side by side.
    """
    parts = _parts(shapes)
    unplaced: list[Unplaced] = []
    looks: dict[str, list[_Part]] = {}
    for part in parts:
        name, reason = _look(part, sizes.num_layers)
        if name is None:
            unplaced += _rejected(part, reason)
        else:
            looks.setdefault(name, []).append(part)
    placed: dict[str, _Part] = {}
    for name, candidates in looks.items():
        fitting = [p for p in candidates if _fits(p.shape(), sizes.expected(name))]
        if len(fitting) == 1:
            placed[name] = fitting[0]
        for part in candidates:
            if part is not placed.get(name):
                unplaced += _rejected(part, _why(name, part, fitting, sizes))
    _settle_gate(placed)
    if is_parallel and "post_attn_norm" in placed:
        why = "side by side, attention and feed-forward share one norm in litert-torch"
        unplaced += _rejected(placed.pop("post_attn_norm"), why)
    biased, odd = _biases(placed)
    return NameMap(
        placed={name: placed[name].prefix for name in _ORDER if name in placed},
        biased=biased,
        unplaced=tuple(sorted([*unplaced, *odd], key=lambda u: u.name)),
    )


def _parts(shapes: Mapping[str, tuple[int, ...]]) -> list[_Part]:
    names = [n for n in shapes if not HARMLESS.search(n)]
    firsts = Counter(m[1] for n in names if (m := re.match(r"(.*?\.)\d+\.", n)))
    container = firsts.most_common(1)[0][0] if firsts else None
    parts: dict[str, _Part] = {}
    for name in names:
        prefix, _, kind = name.rpartition(".")
        layer = None
        if container and (m := re.fullmatch(re.escape(container) + r"(\d+)\.(.+)", prefix)):
            layer, prefix = int(m[1]), f"{container}{{}}.{m[2]}"
        part = parts.setdefault(prefix, _Part(prefix))
        part.shapes.setdefault(kind, {})[layer] = shapes[name]
    return sorted(parts.values(), key=lambda p: p.prefix)


def _look(part: _Part, num_layers: int | None) -> tuple[str | None, str]:
    """Returns the field of TensorNames that a part looks like, or None and why it does not."""
    for by_layer in part.shapes.values():
        if None in by_layer:
            continue
        if len(set(by_layer.values())) > 1:
            return None, "its shape differs between layers"
        if num_layers is not None and by_layer.keys() != set(range(num_layers)):
            return None, f"{len(by_layer)} layers have it, config.json says {num_layers}"
    # A brace that the checkpoint's own name has would be taken for the layer.
    if "weight" not in part.shapes or re.search("[{}]", part.prefix.replace("{}", "", 1)):
        return None, "its name is not known"
    _, is_layered, inside = part.prefix.partition("{}.")
    patterns, text = (_IN_LAYER, inside) if is_layered else (_OUTSIDE, part.prefix)
    found = next((name for name, p in patterns.items() if p.fullmatch(text)), None)
    return found, _strange(part)


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        e is None or n == e for n, e in zip(shape, expected, strict=True)
    )


def _why(name: str, part: _Part, fitting: Sequence[_Part], sizes: Sizes) -> str:
    expected = sizes.expected(name)
    if part in fitting:
        rivals = " and ".join(p.prefix for p in fitting)
        return f"each of {rivals} could be {name}"
    queries, groups = sizes.expected("attn_query_proj")[0], sizes.expected("attn_key_proj")[0]
    if name in ("attn_query_norm", "attn_key_norm") and part.shape() in ((queries,), (groups,)):
        return "a norm over the whole projection; litert-torch has one over each head"
    if part.shape() == expected[::-1] and len(expected) == 2:
        return f"it could be {name}, but stands transposed: expected {_shown(expected)}"
    return f"it could be {name}, but config.json implies {_shown(expected)}"


def _strange(part: _Part) -> str:
    inside = part.prefix.rpartition(".")[2]
    if re.search("gate_up|up_gate|gate_and_up", inside):
        return "gate and up in one tensor; litert-torch has one of each"
    if inside in ("wpe", "embed_positions", "position_embeddings"):
        return "learned positions, which litert-torch's decoder lacks"
    return "its name is not known"


def _rejected(part: _Part, reason: str) -> Iterator[Unplaced]:
    for kind in part.shapes:
        yield Unplaced(f"{part.prefix}.{kind}", part.shape(kind), reason)


def _settle_gate(placed: dict[str, _Part]) -> None:
    # `w1` is the gate beside `w3`, and the way in where there is none.
    gate = placed.get("ff_gate_proj")
    if gate and gate.prefix.endswith(".w1") and "ff_up_proj" not in placed:
        placed["ff_up_proj"] = placed.pop("ff_gate_proj")


def _biases(placed: Mapping[str, _Part]) -> tuple[frozenset[str], list[Unplaced]]:
    """Returns the fields with a bias, and what is neither weight nor a bias that can be placed."""
    biased = {name for name, part in placed.items() if "bias" in part.shapes}
    odd: list[Unplaced] = []
    for together in _TOGETHER:
        present = [n for n in together if n in placed]
        if 0 < len(biased & set(present)) < len(present):
            for name in sorted(biased & set(present)):
                biased.remove(name)
                reason = f"litert-torch has a bias for all of {', '.join(present)} or for none"
                prefix, shape = placed[name].prefix, placed[name].shape("bias")
                odd.append(Unplaced(f"{prefix}.bias", shape, reason))
    odd += [
        Unplaced(f"{part.prefix}.{kind}", part.shape(kind), f"no part has a {kind}")
        for part in placed.values()
        for kind in part.shapes.keys() - {"weight", "bias"}
    ]
    return frozenset(biased), odd


def _product(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a * b


def _shown(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if n is None else str(n) for n in shape) + "]"
