"""The option of pytest that says which plugin is tested."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

#: Its name, and the name under which pytest keeps it.
OPTION = "--edgezoo-plugin"
DESTINATION = "edgezoo_plugin"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option. An entry point: with --pyargs a conftest.py comes too late."""
    group = parser.getgroup("edgezoo")
    text = "family of the plugin that `--pyargs edgezoo_core.testkit` tests"
    group.addoption(OPTION, dest=DESTINATION, metavar="FAMILY", help=text)
