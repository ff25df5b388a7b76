"""Slots of a KV cache: how many a file has, and how many of them a runtime uses.

Each step of decoding reads every slot, filled or not. LiteRT-LM lets an app ask for fewer where the
mask's last dimension is a prime above 10: it takes that for a placeholder ("magic number") and
rewrites it all over the graph as it loads the file, to `max_num_tokens` where that is smaller, else
to a round number below (runtime/executor/magic_number_configs_helper.cc, 0.18.1).
"""

from __future__ import annotations

import math
from collections.abc import Collection

_LOWEST = 11
_UNIT = 256


def is_placeholder(number: int) -> bool:
    """Says whether LiteRT-LM rewrites a dimension, a mask's last one or a prefill's length."""
    return number >= _LOWEST and all(number % d for d in range(2, math.isqrt(number) + 1))


def used(slots: int) -> int:
    """Returns how many of a file's slots LiteRT-LM uses where the app asks for no fewer."""
    if not is_placeholder(slots):
        return slots
    if slots > _UNIT:
        return slots // _UNIT * _UNIT
    return 1 << slots.bit_length() - 1


def adjustable(capacity: int, taken: Collection[int]) -> int:
    """Returns how many slots a file needs so that `capacity` are used, and fewer may be asked for.

    Args:
        capacity: Slots to be used, prompt and answer together.
        taken: Dimensions of the model, which must not be mistaken for its slots.

    Returns:
        The placeholder. `capacity` itself where LiteRT-LM would make another number of each, which
        it does unless that is a multiple of 256 or a smaller power of two.
    """
    placeholders = (s for s in range(capacity + 1, 2 * capacity) if is_placeholder(s))
    fitting = (s for s in placeholders if used(s) == capacity and s not in taken)
    return next(fitting, capacity)
