"""Installs plugins by the names of the index, with the installer of this environment."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from edgezoo_core import environment, plugins, registry
from edgezoo_core.errors import PluginError, TargetError, listing, nearest

#: What PEP 508 calls a name, and the plain versions of PEP 440.
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"(?P<version>(?:==|~=|!=|<=|>=|<|>)[0-9]+(?:\.[0-9]+)*"
    r"(?:\.\*|(?:(?:a|b|rc)[0-9]+)?(?:\.post[0-9]+)?(?:\.dev[0-9]+)?))?"
)

#: Sees what was installed, as a fresh process. -P: the folder where the user happens to be is no
#: part of it.
_EXAMINE = ("-P", "-c", "from edgezoo_core.cli import main; main()", "plugins", "--json")


@dataclass(frozen=True, slots=True)
class Requirement:
    """What the installer is asked for.

    Attributes:
        name: The distribution's, in its normal form.
        version: Which versions will do, as `==1.0`; empty for any.
    """

    name: str
    version: str = ""

    def __str__(self) -> str:
        return self.name + self.version


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an installed distribution turned out to be.

    Attributes:
        about: Distribution, version, state, and models or reason, in one line.
        is_ok: Whether it can be used.
    """

    about: str
    is_ok: bool


def resolve(name: str, *, may_be_unlisted: bool = False) -> Requirement:
    """Finds the distribution that a name stands for.

    Args:
        name: A family, a model id or a distribution of the index.
        may_be_unlisted: Whether any other distribution, also `NAME==VERSION`, will do.

    Raises:
        TargetError: The index does not know the name, and it may not or cannot be unlisted.
    """
    known: dict[str, str] = {}
    for entry in registry.index().values():
        for alias in (entry.id, entry.family, _normal(entry.distribution)):
            known[alias] = _normal(entry.distribution)
    listed = known.get(name) or known.get(_normal(name))
    if listed:
        return Requirement(listed)
    if not may_be_unlisted:
        guess = nearest(name, known)
        hint = f"did you mean {guess}?" if guess else "see `edgezoo list --available`."
        raise TargetError(
            f"the index has no family, model or package {name!r}",
            remedy=f"{hint} Any other package needs --unlisted;"
            " installing a package runs its code: be sure of the name",
        )
    match = _REQUIREMENT.fullmatch(name)
    if not match:
        raise TargetError(f"{name!r} is no name of a package", remedy="write `name` or `name==1.0`")
    # pip would take `name.whl` for a file of this folder; the normal form has no dots.
    return Requirement(_normal(match["name"]), match["version"] or "")


def is_present(requirement: Requirement) -> bool:
    """Whether a distribution is installed, any version will do, and its plugins look sound."""
    states = {p.state for p in plugins.discover() if _normal(p.distribution) == requirement.name}
    return states == {"ok"} and not requirement.version


def command(requirements: Sequence[Requirement], *, is_upgrade: bool = False) -> list[str]:
    """Returns the command that installs into the environment of this interpreter.

    Raises:
        PluginError: There is neither pip in the environment nor uv on the path.
    """
    if find_spec("pip"):
        installer = [sys.executable, "-m", "pip", "install"]
    elif shutil.which("uv"):
        installer = ["uv", "pip", "install", "--python", sys.executable]
    else:
        raise PluginError(
            f"{sys.executable} has no pip, and there is no uv",
            remedy=f"run: {sys.executable} -m ensurepip",
        )
    options = ["--upgrade"] if is_upgrade else []
    return [*installer, *options, *map(str, requirements)]


def run(command: Sequence[str]) -> None:
    """Runs what `command` returned.

    Raises:
        PluginError: It did not end well.
    """
    # What the installer says is talk, so it goes to stderr.
    # A package that pip builds runs its code, which has no business with the hub's token.
    code = subprocess.run(
        command, stdout=2, check=False, env=environment.without_tokens()
    ).returncode
    if code:
        raise PluginError(
            f"the installer ended with exit code {code}",
            remedy="see what it says above, and repeat the command",
        )


def examine(requirements: Sequence[Requirement]) -> list[Outcome]:
    """Says what each installed distribution turned out to be.

    Raises:
        PluginError: The plugins cannot be listed.
    """
    done = subprocess.run(
        [sys.executable, *_EXAMINE],
        stdout=subprocess.PIPE,
        check=False,
        env=environment.without_tokens(),
    )
    try:
        found = json.loads(done.stdout)
    except ValueError as e:
        raise PluginError(
            f"the plugins cannot be listed (exit code {done.returncode})",
            remedy="see `edgezoo plugins --verbose`",
        ) from e
    outcomes = []
    for requirement in requirements:
        own = [p for p in found if _normal(p["distribution"]) == requirement.name]
        nothing = Outcome(f"{requirement.name} brings no plugin", is_ok=False)
        outcomes += [_outcome(plugin) for plugin in own] or [nothing]
    return outcomes


def _outcome(plugin: Mapping[str, Any]) -> Outcome:
    name = f"{plugin['distribution']} {plugin['version']}"
    if plugin["state"] == "ok":
        return Outcome(f"{name}: ok, {listing(plugin['models'])}", is_ok=True)
    return Outcome(f"{name} is {plugin['state']}: {plugin['reason']}", is_ok=False)


def _normal(name: str) -> str:
    """Returns the form of a distribution's name by which package indexes compare."""
    return re.sub(r"[-_.]+", "-", name).lower()
