"""The contract of a plugin, as checks that anybody can run: no download, under a minute.

`edgezoo plugins test FAMILY`, `pytest --pyargs edgezoo_core.testkit --edgezoo-plugin FAMILY`, and
one subclass in a plugin's own tests run the same checks:

    from edgezoo_core.testkit import PluginContract

    class TestMyModel(PluginContract):
        family = "mymodel"

A must holds for every plugin. The others are asked of a plugin whose card claims their capability
in its table `[conformance]`. A model of each architecture of the card, small and random, stands for
those that are published.

Stability: a check becomes a must, or stricter, only in a minor release of edgezoo-core, and says
since which. A patch release may make a must milder, or mend one that was wrong. So a plugin that
passes passes with every patch release of the same minor one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgezoo_core.testkit.contract import PluginContract

__all__ = ["PluginContract"]


def __getattr__(name: str) -> Any:
    # Later: it brings pytest, which the command does without.
    if name == "PluginContract":
        from edgezoo_core.testkit.contract import PluginContract

        return PluginContract
    raise AttributeError(f"module {__name__} has no attribute {name}")
