"""What a source says about its architecture: sizes, and where each part stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgezoo_core.checkpoint import HUB_NAMES
from edgezoo_core.scaffold.fields import Fields
from edgezoo_core.scaffold.knowledge import Knowledge, look_up
from edgezoo_core.scaffold.names import NameMap, Sizes, guess
from edgezoo_core.scaffold.source import Source

#: Fields that say whether attention and feed-forward stand side by side.
PARALLEL = ("use_parallel_residual", "parallel_attn")
#: Norms of a layer behind the first one.
LATER_NORMS = ("post_attn_norm", "pre_ff_norm", "post_ff_norm")


@dataclass(frozen=True, slots=True)
class Facts:
    """A source, read.

    Attributes:
        source: The source.
        known: What transformers knows about it.
        fields: Its config; remembers which fields the draft reads.
        sizes: What the shapes were held against.
        names: Where each part stands; those that most families have where none could be read.
        is_parallel: Whether attention and feed-forward stand side by side.
    """

    source: Source
    known: Knowledge
    fields: Fields
    sizes: Sizes
    names: NameMap
    is_parallel: bool

    def has(self, name: str) -> bool:
        """Whether a field of TensorNames was placed."""
        return name in self.names.placed

    def flag(self, spellings: Sequence[str], part: str) -> str:
        """Returns the code that says whether a part has a bias; empty where it has none.

        Args:
            spellings: Config fields that could say it; one that contradicts the tensors is not it.
            part: Field of TensorNames.
        """
        seen = part in self.names.biased if self.source.shapes else None
        for name in spellings:
            value = self.fields.value(name)
            if self.fields.has(name) and isinstance(value, bool) and seen in (None, value):
                return self.fields.call("flag", name)
        return "True" if seen else ""


def find(source: Source) -> Facts:
    """Reads a source."""
    known = look_up(source.config)
    fields = Fields(source.config, known)
    sizes = _sizes(fields)
    flags = [fields.value(name) for name in PARALLEL if fields.has(name)]
    is_parallel = True in flags
    if source.shapes:
        names = guess(source.shapes, sizes, is_parallel=is_parallel)
        # A single norm in a layer, and nothing that could be another: side by side.
        is_parallel = is_parallel or (not flags and _has_one_norm(names, sizes))
    else:
        absent = ("post_attn_norm",) if is_parallel else ()
        placed = {name: p for name, p in HUB_NAMES.items() if name not in absent}
        names = NameMap(placed, frozenset(), ())
    return Facts(source, known, fields, sizes, names, is_parallel)


def _sizes(fields: Fields) -> Sizes:
    width, heads = fields.size("embedding_dim"), fields.size("num_heads")
    head_dim = fields.size("head_dim")
    if head_dim is None and width and heads:
        head_dim = width // heads
    sizes = Sizes(
        embedding_dim=width,
        num_heads=heads,
        num_query_groups=fields.size("num_query_groups") or heads,
        head_dim=head_dim,
        intermediate_size=fields.size("intermediate_size") or (4 * width if width else None),
        vocab_size=fields.size("vocab_size"),
        num_layers=fields.size("num_layers"),
    )
    return replace(sizes, num_query_groups=1) if has_one_key_head(fields) else sizes


def has_one_key_head(fields: Fields) -> bool:
    """Whether all heads share one key and value, as Falcon and StarCoder say it."""
    is_newer = fields.value("new_decoder_architecture") is True
    return fields.value("multi_query") is True and not is_newer


def _has_one_norm(names: NameMap, sizes: Sizes) -> bool:
    others = [u for u in names.unplaced if u.shape == (sizes.embedding_dim,) and "{}" in u.name]
    return "pre_attn_norm" in names.placed and not (
        others or any(name in names.placed for name in LATER_NORMS)
    )
