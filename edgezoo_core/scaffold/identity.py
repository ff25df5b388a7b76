"""What a new family is called, in each place that spells a name in its own way."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgezoo_core.errors import PluginError
from edgezoo_core.plugins import Plugin

#: Longest name of a family; the first line of its architecture file has room for no more.
LONGEST = 30

_FAMILY = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Identity:
    """The names of one family.

    Attributes:
        family: Name of the entry point.
    """

    family: str

    @property
    def module(self) -> str:
        """Name of the architecture file, without `.py`."""
        return self.family.replace("-", "_")

    @property
    def package(self) -> str:
        """Name of the import package."""
        return f"edgezoo_{self.module}"

    @property
    def distribution(self) -> str:
        """Name of what pip installs, and of the folder."""
        return f"edgezoo-{self.family.replace('_', '-')}"

    @property
    def title(self) -> str:
        """Name for people, and for classes."""
        return "".join(part.capitalize() for part in self.module.split("_"))


def identify(family: str, installed: Sequence[Plugin]) -> Identity:
    """Returns the names of a new family.

    Args:
        family: What the author calls it.
        installed: Plugins whose names are taken.

    Raises:
        PluginError: It is no name, or it is taken.
    """
    if not _FAMILY.fullmatch(family) or len(family) > LONGEST:
        raise PluginError(
            f"{family!r} is no name for a family",
            remedy=f"choose up to {LONGEST} lower-case letters, digits, - or _, such as my-model",
        )
    names = Identity(family)
    if keyword.iskeyword(names.module):
        raise PluginError(
            f"{family!r} is a keyword of Python, and cannot be the name of a module",
            remedy=f"choose another, such as {family}-model",
        )
    if names.package == __name__.partition(".")[0]:
        raise PluginError(
            f"{names.distribution} is edgezoo's own package",
            remedy=f"choose another, such as {family}-model",
        )
    for plugin in installed:
        same = (
            plugin.family == family
            or plugin.module.partition(".")[0] == names.package
            or plugin.distribution == names.distribution
        )
        if same:
            raise PluginError(
                f"family {family} is installed already: {plugin}, package {plugin.module}",
                remedy="choose another name, or uninstall it first",
            )
    return names
