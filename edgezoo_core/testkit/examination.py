"""Carries out the checks of a plugin, each once and in the order in which they need each other."""

from __future__ import annotations

import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from edgezoo_core import plugins
from edgezoo_core.compiler.schema import import_litert_torch
from edgezoo_core.errors import EdgezooError, PluginError, listing, nearest, plain
from edgezoo_core.plugins import Plugin
from edgezoo_core.testkit.check import Check, CheckFailedError, Outcome, Verdict
from edgezoo_core.testkit.report import Report, of
from edgezoo_core.types import Progress, silent

logger = logging.getLogger(__name__)


def find(family: str) -> Plugin:
    """Returns an installed plugin, usable or not.

    Raises:
        PluginError: There is none of this family, or more than one, or it is disabled.
    """
    found = plugins.discover()
    named = [plugin for plugin in found if plugin.family == family]
    if not named:
        guess = nearest(family, [plugin.family for plugin in found])
        raise PluginError(
            f"no plugin of family {family!r} is installed",
            remedy=f"did you mean {guess}?" if guess else "install it, or see `edgezoo plugins`",
        )
    if len(named) > 1:
        raise PluginError(
            f"family {family} is claimed by {listing(map(str, named))}",
            remedy="uninstall all but one",
        )
    if named[0].state == "disabled":
        raise PluginError(
            f"plugin {family} is disabled", remedy=f"add {family} to EDGEZOO_PLUGINS, or unset it"
        )
    return named[0]


def asked_of(plugin: Plugin) -> tuple[Check, ...]:
    """Returns the musts, and the checks that the capabilities in the plugin's card ask for."""
    claimed = plugin.card.conformance.capabilities if plugin.card else ()
    return tuple(c for c in _checks() if c.capability is None or c.capability in claimed)


def examine(plugin: Plugin, progress: Progress = silent) -> Report:
    """Carries out every check that is asked of a plugin.

    Args:
        plugin: As it was discovered.
        progress: Told of each check.
    """
    began = time.perf_counter()
    progress("importing the libraries")
    with Examination(plugin) as examination:
        outcomes = []
        for check in asked_of(plugin):
            progress(check.name)
            outcomes.append(examination.outcome(check.name))
    return of(plugin, outcomes, time.perf_counter() - began)


class Examination:
    """The checks of one plugin; a context manager, which removes its files.

    Args:
        plugin: As it was discovered.
    """

    def __init__(self, plugin: Plugin) -> None:
        self._checks = {check.name: check for check in _checks()}
        import torch

        from edgezoo_core.testkit.subject import Subject

        self._outcomes: dict[str, Outcome] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="edgezoo-testkit-")
        self._subject = Subject(plugin, Path(self._folder.name))
        # What was imported is no garbage, and need not be looked through after each trace.
        gc.freeze()
        # Threads that wait for each other cost more than models so small give them to do.
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import torch

        torch.set_num_threads(self._threads)
        gc.unfreeze()
        self._folder.cleanup()

    def outcome(self, name: str) -> Outcome:
        """Carries out a check, and those that it needs, unless that was done before."""
        if name not in self._outcomes:
            self._outcomes[name] = self._carry_out(self._checks[name])
        return self._outcomes[name]

    def _carry_out(self, check: Check) -> Outcome:
        missed = [o for o in map(self.outcome, check.needs) if o.verdict != "passed"]
        began = time.perf_counter()
        verdict: Verdict = "passed"
        found: tuple[str, ...]
        if missed:
            verdict = "not reached"
            failed = {o.check if o.verdict == "failed" else o.found[0] for o in missed}
            found = tuple(sorted(failed))
        else:
            try:
                with _unwarned():
                    found = tuple(filter(None, [check.work(self._subject)]))
            except CheckFailedError as e:
                verdict, found = "failed", e.found
            except EdgezooError as e:
                verdict, found = "failed", (e.message,)
            except Exception as e:
                # A plugin's module can raise anything wherever it is run.
                logger.info("%s", check.name, exc_info=True)
                verdict, found = "failed", (f"{type(e).__name__}: {e}",)
        return Outcome(
            check.name,
            check.demand,
            check.capability,
            check.since,
            verdict,
            tuple(plain(line) for line in found),
            time.perf_counter() - began,
        )


def _checks() -> tuple[Check, ...]:
    """Returns all checks; brings the libraries.

    Raises:
        PluginError: They are not installed.
    """
    try:
        with _unwarned():
            import_litert_torch()
            from edgezoo_core.testkit.checks import CHECKS
    except ModuleNotFoundError as e:
        raise PluginError(
            f"the contract needs {e.name}, which is not installed",
            remedy="pip install 'edgezoo-core[testkit]'",
        ) from e
    return CHECKS


@contextmanager
def _unwarned() -> Iterator[None]:
    """Hides what the libraries warn of, which is no fault of the plugin but may be an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
