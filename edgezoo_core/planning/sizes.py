"""How large a file becomes: what its weights take by their formats, and what the graph takes.

The weights are exact. The graph's share was measured on skeletons, which need no weights: those of
all families at 2 to 32 layers, with 2 to 7 signatures, in each recipe. To fit it again, print
`head_bytes` of `edgezoo_core.compiler.compile_job(...).program` for the models of
benchmarks/conversion.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.types import WeightRule

#: Bytes of a graph without layers: signatures, metadata, decompositions that layers share.
_GRAPH_BYTES = 18_000
#: Bytes of one layer in one signature: its operators, tensors and their names.
_LAYER_BYTES = 25_000
#: Bytes more where a weight is dequantized by an operator of its own, per use and signature.
_DEQUANTIZE_BYTES = 305
#: Bytes of a scale by channel: float32, with an int64 zero point.
_SCALE_BYTES = 12
#: What each constant is aligned to.
_ALIGNMENT = 16
#: A section of a .litertlm begins at a multiple of this. Source: litert_lm_builder, BLOCK_SIZE
_SECTION = 16_384
#: Share of tokenizer.json that is left once it is compressed; a tokenizer.model is stored as it is.
_COMPRESSED = 0.2


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of an artifact, by what takes them.

    Attributes:
        weights: Matrices in their formats with the scales of blocks, and vectors in float32.
        scales: Scales by channel, inside of the graph.
        graph: The rest of it.
        mask: The mask, where it is built in.
    """

    weights: int
    scales: int
    graph: int
    mask: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.scales + self.graph + self.mask


def artifact(
    rules: Sequence[WeightRule],
    shapes: Mapping[str, Sequence[int]],
    layers: int,
    options: SignatureOptions,
) -> Sizes:
    """Predicts an artifact.

    Args:
        rules: The format of each use of a weight.
        shapes: All parameters; those that no rule is for are vectors.
        layers: Blocks of the model.
        options: The signatures' static shapes.
    """
    signatures = len(options.prefill_lengths) + 1
    # A tied weight whose uses store it alike is stored once, dynamic or not.
    stored = {
        (r.parameter, r.format and (r.format.bits, r.format.is_float, r.format.block_size)): r
        for r in rules
    }
    weights = scales = 0
    for rule in stored.values():
        count = math.prod(rule.shape)
        weights += _aligned((count * (rule.format.bits if rule.format else 32) + 7) // 8)
        if rule.format and rule.format.block_size:
            weights += _aligned(2 * count // rule.format.block_size)
        elif rule.format and not rule.format.is_float:
            scales += _SCALE_BYTES * rule.shape[0]
    matrices = {r.parameter for r in rules}
    weights += sum(_aligned(4 * math.prod(s)) for n, s in shapes.items() if n not in matrices)
    apart = sum(
        r.format is not None and not (r.format.is_dynamic and not r.format.block_size)
        for r in rules
    )
    graph = _GRAPH_BYTES + signatures * (layers * _LAYER_BYTES + apart * _DEQUANTIZE_BYTES)
    mask = 0 if options.mask_as_input else 4 * options.kv_cache_length**2
    return Sizes(weights, scales, graph, mask)


def bundle(artifact_bytes: int, tokenizers: Mapping[str, int]) -> int:
    """Predicts a bundle.

    Args:
        artifact_bytes: The .tflite in it.
        tokenizers: Bytes of the source's tokenizer files by name.
    """
    if "tokenizer.json" in tokenizers:
        section = int(_COMPRESSED * tokenizers["tokenizer.json"])
    else:
        section = max(tokenizers.values(), default=0)
    # The header, the two sections of metadata, the tokenizer.
    before = 3 * _SECTION + -(-section // _SECTION) * _SECTION
    return before + artifact_bytes


def kv_cache(slot_bytes: int, context_length: int, asked: int) -> dict[int, int]:
    """Returns the bytes of the KV cache at usual lengths, the one asked for, and the context."""
    usual = (512, 1280, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
    lengths = {n for n in usual if n < context_length} | {asked, context_length}
    return {n: n * slot_bytes for n in sorted(lengths)}


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
