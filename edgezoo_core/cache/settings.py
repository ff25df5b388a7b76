"""What the environment says about the cache: its folder and its size."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from edgezoo_core.errors import CacheError

DEFAULT_LIMIT_BYTES = 4 * 10**9
#: What to do about a folder that does not serve.
REMEDY = "set EDGEZOO_CACHE to a folder that can be written, or pass --no-cache"

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{infix}B": base**power
    for infix, base in (("", 1000), ("I", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}


def default_root() -> Path:
    """Returns the folder that the environment names.

    Raises:
        CacheError: It names none, and there is no home folder.
    """
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    under = "Library/Caches" if sys.platform == "darwin" else ".cache"
    try:
        if named := os.environ.get("EDGEZOO_CACHE"):
            return Path(named).expanduser().absolute()
        # By its specification, a relative XDG_CACHE_HOME does not count.
        return (xdg if xdg.is_absolute() else Path.home() / under) / "edgezoo"
    except RuntimeError as e:
        raise CacheError(f"there is no folder for the cache: {e}", remedy=REMEDY) from e


def default_limit_bytes() -> int:
    """Returns the size limit that the environment sets.

    Raises:
        CacheError: EDGEZOO_CACHE_LIMIT is no size.
    """
    text = os.environ.get("EDGEZOO_CACHE_LIMIT", "").strip()
    if not text:
        return DEFAULT_LIMIT_BYTES
    size = parse_size(text)
    if size is None:
        message = f"EDGEZOO_CACHE_LIMIT is {text!r}, which is no size"
        raise CacheError(message, remedy="set it to a size like 2GB or 500MB, or unset it")
    return size


def parse_size(text: str) -> int | None:
    """Returns the bytes of a size like 2GB, 1.5 GiB or 500M; None if it is none."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Z]*)", text.strip().upper())
    if not match or match[2] not in _UNITS:
        return None
    return int(float(match[1]) * _UNITS[match[2]])
