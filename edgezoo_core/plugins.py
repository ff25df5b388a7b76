"""Finds, checks, loads and isolates model plugins."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgezoo_core import HOOK_API, OLDEST_HOOK_API, cards
from edgezoo_core.errors import EdgezooError, PluginError, listing, plain

if TYPE_CHECKING:
    from edgezoo_core.hooks import LoadedPlugin

#: Entry-point group under which plugins register; the entry's name is the family.
GROUP = "edgezoo"

State = Literal[
    "ok", "incompatible", "invalid-card", "conflict", "import-failed", "contract-failed", "disabled"
]


@dataclass(frozen=True, slots=True)
class Plugin:
    """An installed plugin, as its metadata and card show it.

    Attributes:
        family: Name of the entry point.
        distribution: Name of the distribution that brings it.
        version: Version of that distribution.
        module: Dotted name of the module that holds the hooks.
        state: `ok`, or why it cannot be used (of a conflict over model ids: why not fully).
        reason: One line about the state; empty when ok.
        card: Its models.toml, if that could be read; models in conflict are left out.
        hooks: The hooks that it answers itself; known once it was examined.
        error: What its code raised when it was examined.
    """

    family: str
    distribution: str
    version: str
    module: str
    state: State = "ok"
    reason: str = ""
    card: cards.FamilyCard | None = None
    hooks: tuple[str, ...] = ()
    error: BaseException | None = field(default=None, compare=False)

    @property
    def is_usable(self) -> bool:
        """Whether some model of the plugin can be converted, as far as is known."""
        return self.card is not None and self.state in ("ok", "conflict")

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def discover() -> tuple[Plugin, ...]:
    """Lists the installed plugins in order of family, running none of their code.

    `EDGEZOO_PLUGINS`, families separated by commas, disables all others.

    Raises:
        PluginError: Some plugin is not ok, and `EDGEZOO_STRICT` is 1.
    """
    chosen = os.environ.get("EDGEZOO_PLUGINS")
    allowed = None if chosen is None else {name.strip() for name in chosen.split(",")} - {""}
    # An editable install can show one entry point twice: as a set, it counts once.
    installed = sorted({_describe(entry) for entry in metadata.entry_points(group=GROUP)})
    unknown = sorted((allowed or set()) - {family for family, *_ in installed})
    if unknown:
        _log("WARNING", f"EDGEZOO_PLUGINS names {listing(unknown)}, which is not installed")
    found = _find_conflicts([_inspect(Plugin(*entry), allowed) for entry in installed])
    for plugin in found:
        _report(plugin)
    return tuple(found)


def load(plugin: Plugin) -> LoadedPlugin:
    """Imports a plugin and checks its hooks against the contract.

    Raises:
        PluginError: It is not usable, its import fails, or its hooks break the contract.
    """
    if not plugin.is_usable:
        raise PluginError(
            f"plugin {plugin.family} of {plugin} is {plugin.state}: {plugin.reason}",
            remedy=remedy(plugin),
        )
    try:
        module = importlib.import_module(plugin.module)
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        # BaseException: a plugin that calls sys.exit at import must not end the command.
        reason = f"import of {plugin.module} failed: {type(e).__name__}: {e}"
        raise _failed(plugin, "import-failed", reason) from e
    from edgezoo_core import hooks  # with pluggy, which a listing does without

    try:
        problem = hooks.contract_problem(module)
    except Exception as e:
        reason = f"its hooks cannot be read: {type(e).__name__}: {e}"
        raise _failed(plugin, "contract-failed", reason) from e
    if problem:
        raise _failed(plugin, "contract-failed", problem)
    for hook, old, new in hooks.outdated_arguments(module):
        _log(
            "WARNING",
            f"plugin {plugin.family} of {plugin}: {hook} takes {old}, which is now called {new};"
            " the old name goes with the next minor release of edgezoo-core",
        )
    return hooks.LoadedPlugin(plugin, module)


def examine(plugin: Plugin) -> Plugin:
    """Returns the plugin with the state and the hooks that it shows once it is imported.

    Raises:
        PluginError: That state is not ok, and `EDGEZOO_STRICT` is 1.
    """
    if not plugin.is_usable:
        return plugin
    try:
        loaded = load(plugin)
    except PluginLoadError as e:
        if _is_strict():
            raise
        return replace(plugin, state=e.state, reason=e.reason, error=e.__cause__)
    return replace(plugin, hooks=loaded.hooks)


class PluginLoadError(PluginError):
    """A plugin could not be imported, or its hooks break the contract."""

    def __init__(self, plugin: Plugin, state: State, reason: str) -> None:
        broken = replace(plugin, state=state, reason=reason)
        super().__init__(f"plugin {plugin.family} of {plugin}: {reason}", remedy=remedy(broken))
        self.state = state
        self.reason = reason


def _describe(entry: metadata.EntryPoint) -> tuple[str, str, str, str]:
    """Returns family, distribution, version and module of an entry point."""
    # The metadata are parsed at each access: once is enough.
    about = entry.dist.metadata if entry.dist else {"Name": "unknown", "Version": ""}
    # Of a value that is no module name, importlib's `entry.module` raises AttributeError.
    module = entry.module if entry.pattern.match(entry.value) else entry.value
    return plain(entry.name), plain(str(about["Name"])), plain(str(about["Version"])), module


def _inspect(plugin: Plugin, allowed: set[str] | None) -> Plugin:
    if allowed is not None and plugin.family not in allowed:
        return replace(plugin, state="disabled", reason="not named in EDGEZOO_PLUGINS")
    try:
        card = cards.read_family(package_folder(plugin.module) / "models.toml")
    except EdgezooError as e:
        return replace(plugin, state="invalid-card", reason=_one_line(f"{e.message} ({e.remedy})"))
    plugin = replace(plugin, card=card)
    if card.family != plugin.family:
        reason = f"entry point {plugin.family!r}, but models.toml says family {card.family!r}"
        return replace(plugin, state="invalid-card", reason=reason)
    if not OLDEST_HOOK_API <= card.hook_api <= HOOK_API:
        plugin = replace(plugin, state="incompatible")
        taken = f"{HOOK_API}" if card.hook_api > HOOK_API else f"{OLDEST_HOOK_API} and later"
        reason = f"written for hook API {card.hook_api}, this edgezoo-core takes {taken}"
        return replace(plugin, reason=f"{reason} ({remedy(plugin)})")
    return plugin


def package_folder(module: str) -> Path:
    """Returns the folder of a package that may not have been imported yet.

    Raises:
        PluginError: It is not installed.
    """
    # Only the top-level name is looked up: find_spec of a dotted one imports its parents.
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError) as e:
        raise PluginError(f"{top}: {e}", remedy="reinstall the plugin") from e
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(f"package {top} is not installed", remedy="reinstall the plugin")
    folder = Path(spec.submodule_search_locations[0], *rest)
    return folder if folder.is_dir() else folder.parent


def _find_conflicts(found: list[Plugin]) -> list[Plugin]:
    usable = [p for p in found if p.is_usable]
    families = Counter(p.family for p in usable)
    ids = Counter(i for p in usable if p.card and families[p.family] == 1 for i in p.card.models)
    checked = []
    for plugin in found:
        if plugin.is_usable and families[plugin.family] > 1:
            rivals = sorted({str(p) for p in usable if p.family == plugin.family})
            reason = f"family {plugin.family} is claimed by {' and '.join(rivals)}"
            plugin = replace(plugin, state="conflict", reason=reason, card=None)
        elif plugin.is_usable and plugin.card:
            clashing = [i for i in plugin.card.models if ids[i] > 1]
            if clashing:
                rivals = sorted(
                    str(p) for p in usable if p.card and p.card.models.keys() & set(clashing)
                )
                models = {i: c for i, c in plugin.card.models.items() if i not in clashing}
                plugin = replace(
                    plugin,
                    state="conflict",
                    reason=f"model {listing(clashing)} is claimed by {' and '.join(rivals)}",
                    card=replace(plugin.card, models=models),
                )
        checked.append(plugin)
    return checked


def _report(plugin: Plugin) -> None:
    if plugin.state in ("ok", "disabled"):
        return
    message = f"plugin {plugin.family} of {plugin} is {plugin.state}: {plugin.reason}"
    if _is_strict():
        raise PluginError(message, remedy=remedy(plugin))
    _log("INFO", message)


def _is_strict() -> bool:
    return os.environ.get("EDGEZOO_STRICT") == "1"


def _log(level: Literal["INFO", "WARNING"], message: str) -> None:
    import logging  # `edgezoo list` has nothing to say as a rule, and does not pay for it

    logging.getLogger(__name__).log(logging.getLevelNamesMapping()[level], message)


def _failed(plugin: Plugin, state: State, reason: str) -> PluginLoadError:
    error = PluginLoadError(plugin, state, _one_line(reason))
    _log("INFO", error.message)
    return error


def _one_line(text: str) -> str:
    # What a plugin's code or card says can have any form.
    return plain(" ".join(text.split()))


def remedy(plugin: Plugin) -> str:
    """Returns what to do about a plugin that is not ok."""
    upgrade = f"pip install --upgrade {plugin.distribution}"
    is_newer = plugin.card is not None and plugin.card.hook_api > HOOK_API
    remedies: dict[State, str] = {
        "incompatible": "pip install --upgrade edgezoo-core" if is_newer else upgrade,
        "conflict": "uninstall one of the two distributions",
        "disabled": f"add {plugin.family} to EDGEZOO_PLUGINS, or unset it",
    }
    return remedies.get(plugin.state, f"{upgrade}, or report it to its maintainers")
