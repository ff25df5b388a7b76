"""What `pytest --pyargs edgezoo_core.testkit --edgezoo-plugin FAMILY` runs."""

from __future__ import annotations

import pytest

from edgezoo_core.testkit import PluginContract
from edgezoo_core.testkit.options import DESTINATION, OPTION


class TestPlugin(PluginContract):
    """The contract of the plugin that the option names."""

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Takes the family from the option."""
        family = metafunc.config.getoption(DESTINATION, None)
        if not family:
            raise pytest.Collector.CollectError(f"pass {OPTION} FAMILY, see `edgezoo plugins`")
        cls.family = family
        super().pytest_generate_tests(metafunc)
