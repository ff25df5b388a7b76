"""What the names in a file tell: the part and the layer of a constant.

Converters name an operator's output after the modules of the source, outermost first:
`…/TransformerBlock_3/…/GatedFeedForward_ff/torch.nn.modules.linear.Linear_w3;;…Linear_w1;1`. What
was fused stands behind `;;`, so the module that is mentioned first is the operator's own: an
up-projection's name also mentions the gate's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: `TransformerBlock_3/` of litert-torch, `LlamaDecoderLayer_3/` of exported transformers models.
_LAYER = re.compile(r"(?:Block|Layer)_(\d+)(?=[/;]|$)")
_LEAF = re.compile(r"(?:Linear|Embedding)_([A-Za-z]\w*)")
_NORM = re.compile(r"(?:Norm|_norm|layernorm)(?=[_/;]|$)")
#: Names of modules: litert-torch's, and those that transformers' decoders share.
_PARTS = {
    "tok_embedding": "embedding",
    "embed_tokens": "embedding",
    "lm_head": "lm_head",
    "qkv_projection": "qkv",
    "qkv_proj": "qkv",
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "output_projection": "o",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w2": "down",
    "w3": "up",
    "fc1": "up",
    "fc2": "down",
}


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where in a decoder a constant belongs.

    Attributes:
        part: One of `types.PARTS`, `norm`, a part with `.bias` behind it; None where no name tells.
        layer: Index of the transformer block, None outside of them or where no name tells.
    """

    part: str | None
    layer: int | None

    def __str__(self) -> str:
        part = self.part or "?"
        return part if self.layer is None else f"layers.{self.layer}.{part}"


def of_weight(scope: str, operator: str) -> Place:
    """Returns the place of the weight of an operator.

    Args:
        scope: Name of the operator's output.
        operator: `FULLY_CONNECTED`, say.
    """
    layer, leaf = _LAYER.search(scope), _LEAF.search(scope)
    part = _PARTS.get(leaf[1]) if leaf else None
    if leaf and leaf[1] == "w1":
        part = "gate" if "GatedFeedForward" in scope[: leaf.start()] else "up"
    if part is None and operator == "EMBEDDING_LOOKUP" and layer is None:
        part = "embedding"
    return Place(part, int(layer[1]) if layer else None)


def of_vector(scope: str) -> Place | None:
    """Returns the place of a vector that an operator reads, if its name tells of a norm."""
    head = scope.partition(";")[0]
    if not _NORM.search(head):
        return None
    layer = _LAYER.search(head)
    return Place("norm", int(layer[1]) if layer else None)


def runs(layers: list[int]) -> str:
    """Writes layers shortly: `0-3, 7`."""
    found: list[list[int]] = []
    for layer in sorted(set(layers)):
        if found and layer == found[-1][1] + 1:
            found[-1][1] = layer
        else:
            found.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
