"""What the user says may be lost, and what is wanted most among all that loses no more."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgezoo_core.errors import RecipeError

if TYPE_CHECKING:
    from edgezoo_core.verification.exam import Lost

Preference = Literal["size", "speed"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]?)B?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Promise:
    """What the user asks for.

    Attributes:
        max_kl: Largest mean KL in nats, None for any.
        max_ppl_increase: Largest growth of the perplexity as a share, None for any.
        max_bytes: Largest .tflite, None for any.
        prefer: What is least among the files that lose no more. Where only the size is named, it is
            the mean KL instead.
    """

    max_kl: float | None = None
    max_ppl_increase: float | None = None
    max_bytes: int | None = None
    prefer: Preference = "size"

    def __post_init__(self) -> None:
        if self.max_kl is None and self.max_ppl_increase is None and self.max_bytes is None:
            raise RecipeError(
                "nothing is promised that a file could be chosen by",
                remedy="pass --max-kl, --max-ppl-increase or --target-size",
            )

    @property
    def limits_loss(self) -> bool:
        """Whether it says what may be lost."""
        return self.max_kl is not None or self.max_ppl_increase is not None

    @property
    def name(self) -> str:
        """What the recipe that keeps it is called."""
        told = []
        if self.max_kl is not None:
            told.append(f"kl{self.max_kl:g}")
        if self.max_ppl_increase is not None:
            told.append(f"ppl{100 * self.max_ppl_increase:g}")
        if self.max_bytes is not None:
            told.append(f"{self.max_bytes / 1e6:g}MB")
        if self.prefer == "speed":
            told.append("fast")
        return "_".join(told).replace("+", "")  # 1e+06: names of recipes have none

    def share(self, lost: Lost) -> float:
        """Returns how much of what may be lost is lost: up to 1 is kept."""
        if not (math.isfinite(lost.mean_kl) and math.isfinite(lost.perplexity)):
            return math.inf
        shares = [0.0]
        if self.max_kl is not None:
            shares.append(_share(lost.mean_kl, self.max_kl))
        if self.max_ppl_increase is not None:
            # Texts that a coarser file happens to read better make up for nothing.
            growth = max(0.0, math.log1p(max(lost.ppl_increase, -0.99)))
            shares.append(_share(growth, math.log1p(self.max_ppl_increase)))
        return max(shares)

    def is_kept(self, lost: Lost, size_bytes: int) -> bool:
        """Says whether a file keeps it."""
        is_small = self.max_bytes is None or size_bytes <= self.max_bytes
        return is_small and self.share(lost) <= 1

    def budget(self) -> float | None:
        """Returns the mean KL that may be lost as far as is known before any file was examined."""
        budgets = [] if self.max_kl is None else [self.max_kl]
        if self.max_ppl_increase is not None:
            # On text like the model's own, perplexity grows by the factor exp(KL).
            budgets.append(math.log1p(self.max_ppl_increase))
        return min(budgets, default=None)

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return asdict(self)


def parse_nats(text: str) -> float:
    """Reads a KL divergence in nats: `0.01`.

    Raises:
        ValueError: It is none, or nothing.
    """
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not (found > 0 and math.isfinite(found)):
        raise ValueError(f"{text!r} is no divergence such as 0.01")
    return found


def parse_bytes(text: str) -> int:
    """Reads a size: `700MB`, `1.5 GB`, `80000000`; units are powers of 1000.

    Raises:
        ValueError: It is none, or nothing.
    """
    match = _SIZE.fullmatch(text.strip())
    size = round(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size <= 0:
        raise ValueError(f"{text!r} is no size such as 700MB or 1.5GB")
    return size


def parse_share(text: str) -> float:
    """Reads a share: `1%`, or `0.01`.

    Raises:
        ValueError: It is none, or nothing.
    """
    match = _SHARE.fullmatch(text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if share <= 0:
        raise ValueError(f"{text!r} is no share such as 1% or 0.01")
    return share


def _share(lost: float, allowed: float) -> float:
    if allowed > 0:
        return lost / allowed
    return 0.0 if lost <= 0 else math.inf
