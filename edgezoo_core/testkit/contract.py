"""The checks as tests: one per check, for a subclass that names a family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from edgezoo_core.errors import EdgezooError
from edgezoo_core.testkit.examination import Examination, asked_of, find


class PluginContract:
    """The contract of a plugin; a subclass is a test class.

    Attributes:
        family: The plugin's family, which must be installed.
    """

    family: ClassVar[str]

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Makes a test of every must, and of each check that the card's capabilities ask for."""
        if "check" in metafunc.fixturenames:
            try:
                names = [check.name for check in asked_of(find(cls.family))]
            except EdgezooError as e:
                raise pytest.Collector.CollectError(f"{e.message}\nFix: {e.remedy}") from e
            metafunc.parametrize("check", names)

    @pytest.fixture(scope="class")
    @classmethod
    def examination(cls) -> Iterator[Examination]:
        """The plugin, of which each check makes what it needs once."""
        with Examination(find(cls.family)) as made:
            yield made

    def test_contract(self, examination: Examination, check: str) -> None:
        """Holds the plugin to one check."""
        outcome = examination.outcome(check)
        if outcome.verdict != "passed":
            demand = f"{outcome.check} ({outcome.demand})"
            found = "\n  ".join([f"{demand}: {outcome.verdict}", *outcome.found])
            pytest.fail(found, pytrace=False)
