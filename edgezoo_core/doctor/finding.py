"""What the doctor found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was looked at.

    Attributes:
        level: `error` if something will not work, `warning` if it may not, `note` if it is worth
            knowing.
        subject: What was looked at.
        found: What is there.
        remedy: What to do about it; empty for `ok`.
    """

    level: Level
    subject: str
    found: str
    remedy: str = ""
