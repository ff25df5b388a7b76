"""What is the matter with this machine: each finding with its remedy. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator

from edgezoo_core import plugins
from edgezoo_core.doctor import hub, machine, packages
from edgezoo_core.doctor.finding import Finding
from edgezoo_core.errors import EdgezooError
from edgezoo_core.types import Progress, silent


def examine(*, is_offline: bool = False, progress: Progress = silent) -> list[Finding]:
    """Looks at versions, machine, plugins and hub.

    Args:
        is_offline: Whether the hub must not be asked.
        progress: Told of each stage.
    """
    progress("looking at the packages")
    found = list(packages.examine())
    progress("looking at the machine")
    found += machine.examine()
    progress("importing the plugins")
    found += _plugins()
    progress("asking the hub" if not is_offline else "looking at the hub's settings")
    found += hub.examine(is_offline=is_offline)
    return found


def _plugins() -> Iterator[Finding]:
    try:
        installed = [plugins.examine(p) for p in plugins.discover()]
    except EdgezooError as e:  # EDGEZOO_STRICT
        yield Finding("error", "plugins", e.message, e.remedy)
        return
    if not installed:
        remedy = "see `edgezoo list --available`, then edgezoo install FAMILY"
        yield Finding("warning", "plugins", "none is installed", remedy)
    for plugin in installed:
        subject = f"plugin {plugin.family}"
        if plugin.state == "ok":
            yield Finding("ok", subject, str(plugin))
        else:
            level = "note" if plugin.state == "disabled" else "error"
            found = f"{plugin} is {plugin.state}: {plugin.reason}"
            yield Finding(level, subject, found, plugins.remedy(plugin))  # type: ignore[arg-type]
