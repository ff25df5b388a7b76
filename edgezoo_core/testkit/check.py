"""What a check of the kit is, and what came of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edgezoo_core.testkit.subject import Subject

Verdict = Literal["passed", "failed", "not reached"]

#: Does the work: returns what was measured, or None; raises `CheckFailedError`.
Work = Callable[["Subject"], str | None]


class CheckFailedError(Exception):
    """A plugin does not hold what a check demands.

    Args:
        found: What was found, one line each.
    """

    def __init__(self, *found: str) -> None:
        super().__init__("; ".join(found))
        self.found = found


@dataclass(frozen=True, slots=True)
class Check:
    """Something that a plugin must hold.

    Attributes:
        name: Stable id.
        since: Version of edgezoo-core that brought it.
        demand: What must hold.
        capability: The capability in the card that asks for it; None for a must.
        needs: Names of the checks without which this one would only repeat their findings.
        work: Does it.
    """

    name: str
    since: str
    demand: str
    capability: str | None
    needs: tuple[str, ...]
    work: Work


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a check.

    Attributes:
        check: Its name.
        demand: What must hold.
        capability: The capability that asks for it; None for a must.
        since: Version of edgezoo-core that brought it.
        verdict: `not reached` where a check failed that it needs.
        found: What is wrong, or what was measured.
        seconds: Time that it took; what it was the first to need counts.
    """

    check: str
    demand: str
    capability: str | None
    since: str
    verdict: Verdict
    found: tuple[str, ...]
    seconds: float


def check(
    name: str, *, since: str, needs: Sequence[str] = (), capability: str | None = None
) -> Callable[[Work], Check]:
    """Makes a check of a function; its docstring says the demand."""

    def make(work: Work) -> Check:
        demand = (work.__doc__ or name).partition("\n")[0].removesuffix(".")
        return Check(name, since, demand, capability, tuple(needs), work)

    return make


def demand(condition: bool, *found: str) -> None:
    """Fails the check unless the condition holds.

    Raises:
        CheckFailedError: It does not.
    """
    if not condition:
        raise CheckFailedError(*found)
