"""What came of a plugin: the report, as JSON and as a badge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgezoo_core import HOOK_API, __version__
from edgezoo_core.plugins import Plugin
from edgezoo_core.testkit.check import Outcome


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a plugin.

    Attributes:
        family: Its family.
        distribution: Name of its distribution.
        version: Version of that.
        capabilities: What its card claims.
        outcomes: Of every must, and of every check that a claimed capability asks for.
        seconds: Time that it took.
    """

    family: str
    distribution: str
    version: str
    capabilities: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def passes(self) -> bool:
        """Whether it holds every must, and all that its card claims."""
        return all(outcome.verdict == "passed" for outcome in self.outcomes)

    def named(self, verdict: str) -> list[str]:
        """Returns the names of the checks with a verdict."""
        return [outcome.check for outcome in self.outcomes if outcome.verdict == verdict]

    @property
    def badge(self) -> str:
        """A line of Markdown for the plugin's README."""
        # shields.io takes an underscore for a space, and a hyphen for the end of a field.
        version = ".".join(__version__.split(".")[:2])
        said, colour = ("passes", "brightgreen") if self.passes else ("fails", "red")
        image = f"https://img.shields.io/badge/edgezoo_contract-{version}_{said}-{colour}"
        return f"![edgezoo contract {version}: {said}]({image})"

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return {
            "family": self.family,
            "distribution": self.distribution,
            "version": self.version,
            "edgezoo_core": __version__,
            "hook_api": HOOK_API,
            "capabilities": list(self.capabilities),
            "passes": self.passes,
            "passed": self.named("passed"),
            "failed": self.named("failed"),
            "not_reached": self.named("not reached"),
            "badge": self.badge,
            "seconds": round(self.seconds, 1),
            "checks": [
                {**asdict(o), "found": list(o.found), "seconds": round(o.seconds, 2)}
                for o in self.outcomes
            ],
        }


def of(plugin: Plugin, outcomes: Sequence[Outcome], seconds: float) -> Report:
    """Sums up the outcomes of a plugin's checks."""
    claimed = plugin.card.conformance.capabilities if plugin.card else ()
    return Report(
        plugin.family, plugin.distribution, plugin.version, claimed, tuple(outcomes), seconds
    )
