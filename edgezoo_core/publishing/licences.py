"""Which licences let a converted copy of the weights be passed on. No legal advice: a table."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from edgezoo_core.errors import PublishError

Terms = Literal["free", "noncommercial", "conditional", "forbidden", "unknown"]

#: What a licence is called, so that it may stand in a card as it is.
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence of weights, and what it says of passing a converted copy on.

    Attributes:
        name: As the hub spells it, or as the source names it.
        terms: `unknown` if the table does not have it.
        condition: What who passes it on has to do, or may not do; empty for `free`.
        source: Where that is said.
        notice: A text that has to go along; empty if there is none.
    """

    name: str
    terms: Terms
    condition: str = ""
    source: str = ""
    notice: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the hub has a name for it."""
        return self.terms != "unknown"

    @property
    def is_open(self) -> bool:
        """Whether a copy may be passed on without a further decision."""
        return self.terms in ("free", "noncommercial")


def find(name: str | None) -> Licence:
    """Returns what is known of a licence by the name that a source gives it.

    Args:
        name: None, `unknown` and `other` say nothing.
    """
    if name is None or name.lower() in ("unknown", "other"):
        return Licence("unknown", "unknown")
    return _table().get(name.lower(), Licence(name, "unknown"))


def refuse(licence: Licence, *, is_accepted: bool) -> None:
    """Stops what a licence does not let pass.

    Args:
        licence: Of the source.
        is_accepted: Whether the user answers for the licence.

    Raises:
        PublishError: It forbids a converted copy, or sets a condition, or is not known, and the
            user does not answer for it; or there is none at all.
    """
    if licence.is_open:
        return
    if licence.name == "unknown":
        raise PublishError(
            "the source names no licence, so nobody but its owner may pass it on",
            remedy="pass --licence NAME if you know it (its page on the hub or its LICENSE says)",
        )
    if is_accepted:
        return
    if licence.terms == "unknown":
        raise PublishError(
            f"the licence {licence.name} is not one that edgezoo knows",
            remedy="read it; if it lets you publish a converted copy, pass --accept-licence",
        )
    if licence.terms == "forbidden":
        raise PublishError(
            f"the licence {licence.name} forbids it: {licence.condition} ({licence.source})",
            remedy="pass --accept-licence only with the owner's permission",
        )
    raise PublishError(
        f"the licence {licence.name} sets a condition: {licence.condition} ({licence.source})",
        remedy="meet it, and pass --accept-licence",
    )


@cache
def _table() -> dict[str, Licence]:
    text = Path(__file__).with_name("licences.toml").read_text(encoding="utf-8")
    values: dict[str, Any] = tomllib.loads(text)
    nc = "not primarily intended for or directed towards commercial advantage"
    found = {name: Licence(name, "free") for name in values["free"]["names"]}
    for name in values["noncommercial"]["names"]:
        page = name.removeprefix("cc-").rpartition("-")
        source = f"https://creativecommons.org/licenses/{page[0]}/{page[2]}/legalcode"
        found[name] = Licence(name, "noncommercial", nc, source)
    terms: tuple[Terms, ...] = ("conditional", "forbidden")
    for kind in terms:
        for name, entry in values[kind].items():
            found[name] = Licence(name, kind, **entry)
    return found
