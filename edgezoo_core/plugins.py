"""Finds, checks, loads and isolates model plugins; one typed method per hook."""

from __future__ import annotations

import importlib
import inspect
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgezoo_core import HOOK_API, cards
from edgezoo_core.errors import EdgezooError, PluginError, listing, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    import pluggy
    import torch
    from litert_torch.generative.utilities.loader import ModelLoader

    from edgezoo_core.checkpoint import Checkpoint
    from edgezoo_core.config import Config
    from edgezoo_core.shapes import SignatureOptions
    from edgezoo_core.types import (
        LazyTensor,
        Model,
        QuantPlan,
        Recipe,
        Signature,
    )

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
    """

    family: str
    distribution: str
    version: str
    module: str
    state: State = "ok"
    reason: str = ""
    card: cards.FamilyCard | None = None

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
            remedy=_remedy(plugin),
        )
    try:
        module = importlib.import_module(plugin.module)
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        # BaseException: a plugin that calls sys.exit at import must not end the command.
        reason = f"import of {plugin.module} failed: {type(e).__name__}: {e}"
        raise _failed(plugin, "import-failed", reason) from e
    problem = _contract_problem(module)
    if problem:
        raise _failed(plugin, "contract-failed", problem)
    return LoadedPlugin(plugin, module)


def examine(plugin: Plugin) -> Plugin:
    """Returns the plugin with the state that it shows once it is imported.

    Raises:
        PluginError: That state is not ok, and `EDGEZOO_STRICT` is 1.
    """
    if not plugin.is_usable:
        return plugin
    try:
        load(plugin)
    except PluginLoadError as e:
        if _is_strict():
            raise
        return replace(plugin, state=e.state, reason=e.reason)
    return plugin


class PluginLoadError(PluginError):
    """A plugin could not be imported, or its hooks break the contract."""

    def __init__(self, plugin: Plugin, state: State, reason: str) -> None:
        broken = replace(plugin, state=state, reason=reason)
        super().__init__(f"plugin {plugin.family} of {plugin}: {reason}", remedy=_remedy(broken))
        self.state = state
        self.reason = reason


class LoadedPlugin:
    """A plugin whose hooks can be called. Nobody else touches pluggy.

    Every method raises PluginError, naming the distribution, when the hook raises anything but an
    EdgezooError, or answers with the wrong type.
    """

    def __init__(self, plugin: Plugin, module: ModuleType) -> None:
        self.plugin = plugin
        self._module = module

    def author(self, model: Model, config: Config) -> torch.nn.Module:
        """Asks for the re-authored module, its parameters on meta."""
        import torch

        module = self._ask("author", torch.nn.Module, model=model, config=config)
        if not hasattr(module, "config"):
            raise self._broken("author", "the module has no `.config` (litert-torch's ModelConfig)")
        if module.training:
            raise self._broken("author", "the module is in training mode; call .eval()")
        real = [n for n, p in module.named_parameters() if not p.is_meta]
        if real:
            raise self._broken("author", f"parameters are not on meta: {listing(real)}")
        return module  # type: ignore[no-any-return]

    def tensor_names(
        self, model: Model, config: Config, names: frozenset[str]
    ) -> ModelLoader.TensorNames:
        """Asks where each part stands in the checkpoint."""
        from edgezoo_core.authoring import TensorNames

        return self._ask("tensor_names", TensorNames, model=model, config=config, names=names)

    def load(
        self,
        model: Model,
        module: torch.nn.Module,
        checkpoint: Checkpoint,
        tensor_names: ModelLoader.TensorNames,
    ) -> Mapping[str, LazyTensor]:
        """Asks for the lazy weights by parameter name."""
        arguments = {
            "model": model,
            "module": module,
            "checkpoint": checkpoint,
            "tensor_names": tensor_names,
        }
        weights = self._ask("load", Mapping, **arguments)
        for name, tensor in weights.items():
            if not all(hasattr(tensor, a) for a in ("shape", "sources", "read")):
                raise self._broken(
                    "load", f"{name} is a {type(tensor).__name__}, not a lazy tensor"
                )
        return weights  # type: ignore[no-any-return]

    def quant_recipe(self, model: Model, module: torch.nn.Module, recipe: Recipe) -> QuantPlan:
        """Asks for the format of every weight."""
        from edgezoo_core.types import QuantPlan

        return self._ask("quant_recipe", QuantPlan, model=model, module=module, recipe=recipe)  # type: ignore[no-any-return]

    def signatures(
        self, model: Model, module: torch.nn.Module, options: SignatureOptions
    ) -> Sequence[Signature]:
        """Asks for the entry points to export."""
        from edgezoo_core.types import Signature

        answer = self._ask("signatures", (list, tuple), model=model, module=module, options=options)
        names = Counter(getattr(s, "name", None) for s in answer)
        if not answer or not all(isinstance(s, Signature) for s in answer):
            raise self._broken("signatures", "it must return one or more Signature")
        if max(names.values()) > 1:
            raise self._broken(
                "signatures", f"two signatures are called {names.most_common(1)[0][0]}"
            )
        return answer  # type: ignore[no-any-return]

    def _ask(self, hook: str, kind: type | tuple[type, ...], **arguments: Any) -> Any:
        manager = _manager(self.plugin, self._module)
        try:
            answer = getattr(manager.hook, hook)(**arguments)
        except (EdgezooError, KeyboardInterrupt):
            raise
        except BaseException as e:
            raise self._broken(hook, f"it raised {type(e).__name__}: {e}") from e
        if answer is None:
            raise self._broken(hook, "it returned None, and the core has no default for it")
        if not isinstance(answer, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join(k.__name__ for k in kinds)
            raise self._broken(hook, f"it returned a {type(answer).__name__}, expected {expected}")
        return answer

    def _broken(self, hook: str, problem: str) -> PluginError:
        return PluginError(
            f"hook `{hook}` of plugin {self.plugin.family} ({self.plugin}): {problem}",
            remedy=f"report it to the maintainers of {self.plugin.distribution}",
        )


def _describe(entry: metadata.EntryPoint) -> tuple[str, str, str, str]:
    """Returns family, distribution, version and module of an entry point."""
    # The metadata are parsed at each access: once is enough.
    about = entry.dist.metadata if entry.dist else {"Name": "unknown", "Version": ""}
    # Of a value that is no module name, importlib's `entry.module` raises AttributeError.
    module = entry.module if entry.pattern.match(entry.value) else entry.value
    return entry.name, str(about["Name"]), str(about["Version"]), module


def _inspect(plugin: Plugin, allowed: set[str] | None) -> Plugin:
    if allowed is not None and plugin.family not in allowed:
        return replace(plugin, state="disabled", reason="not named in EDGEZOO_PLUGINS")
    try:
        card = cards.read_family(_package_folder(plugin.module) / "models.toml")
    except EdgezooError as e:
        return replace(plugin, state="invalid-card", reason=f"{e.message} ({e.remedy})")
    plugin = replace(plugin, card=card)
    if card.family != plugin.family:
        reason = f"entry point {plugin.family!r}, but models.toml says family {card.family!r}"
        return replace(plugin, state="invalid-card", reason=reason)
    if card.hook_api != HOOK_API:
        reason = f"written for hook API {card.hook_api}, this edgezoo-core has {HOOK_API}"
        return replace(plugin, state="incompatible", reason=reason)
    return plugin


def _package_folder(module: str) -> Path:
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
        raise PluginError(message, remedy=_remedy(plugin))
    _log("INFO", message)


def _is_strict() -> bool:
    return os.environ.get("EDGEZOO_STRICT") == "1"


def _log(level: Literal["INFO", "WARNING"], message: str) -> None:
    import logging  # `edgezoo list` has nothing to say as a rule, and does not pay for it

    logging.getLogger(__name__).log(logging.getLevelNamesMapping()[level], message)


def _failed(plugin: Plugin, state: State, reason: str) -> PluginLoadError:
    error = PluginLoadError(plugin, state, reason)
    _log("INFO", error.message)
    return error


def _remedy(plugin: Plugin) -> str:
    upgrade = f"pip install --upgrade {plugin.distribution}"
    remedies: dict[State, str] = {
        "incompatible": f"{upgrade} edgezoo-core",
        "conflict": "uninstall one of the two distributions",
        "disabled": f"add {plugin.family} to EDGEZOO_PLUGINS, or unset it",
    }
    return remedies.get(plugin.state, f"{upgrade}, or report it to its maintainers")


def _contract_problem(module: ModuleType) -> str | None:
    """Returns what is wrong with a module's hooks, or None."""
    from edgezoo_core import hookspecs

    specs = {
        name: list(inspect.signature(f).parameters)
        for name, f in vars(hookspecs).items()
        if hasattr(f, "edgezoo_spec")
    }
    # Like pluggy, routines only: of some objects, torch.ops say, every attribute exists.
    hooks = {
        n: f for n, f in vars(module).items() if inspect.isroutine(f) and hasattr(f, "edgezoo_impl")
    }
    if not hooks:
        return f"{module.__name__} has no function marked with @hookimpl"
    for name, function in hooks.items():
        options = function.edgezoo_impl
        if options["wrapper"] or options["hookwrapper"]:
            return f"{name} is a wrapper; a model plugin answers for its own models only"
        if options["trylast"]:
            return f"{name} is trylast; the core's default would answer before it"
        hook = options["specname"] or name
        if hook not in specs:
            guess = nearest(hook, specs)
            return f"{hook} is no hook" + (f"; did you mean {guess}?" if guess else "")
        for argument in inspect.signature(function).parameters.values():
            # pluggy fills plain positional arguments only: a default hides a misspelling, and a
            # keyword-only argument silently keeps its default.
            if argument.kind is not argument.POSITIONAL_OR_KEYWORD:
                return f"{name}: argument {argument.name} must be a plain one"
            if argument.default is not argument.empty:
                return f"{name}: argument {argument.name} must not have a default"
            if argument.name not in specs[hook]:
                guess = nearest(argument.name, specs[hook])
                return f"{name}: unknown argument {argument.name}" + (
                    f"; did you mean {guess}?" if guess else f" (known: {', '.join(specs[hook])})"
                )
    return None


def _manager(plugin: Plugin, module: ModuleType) -> pluggy.PluginManager:
    import pluggy

    from edgezoo_core import defaults, hookspecs

    # One manager per family: a hook is asked of the owner, then of the defaults, of nobody else.
    # pluggy calls the last registered first. The defaults bring torch, so this is done at the call.
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(defaults, "edgezoo-core:defaults")
    manager.register(module, f"{plugin.distribution}:{plugin.family}")
    manager.check_pending()
    return manager
