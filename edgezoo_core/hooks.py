"""The hooks of one plugin: its module held against the contract, and one typed method per hook."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pluggy

from edgezoo_core import hookspecs
from edgezoo_core.errors import EdgezooError, PluginError, listing, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    import torch
    from litert_torch.generative.utilities.loader import ModelLoader

    from edgezoo_core.checkpoint import Checkpoint
    from edgezoo_core.config import Config
    from edgezoo_core.plugins import Plugin
    from edgezoo_core.shapes import SignatureOptions
    from edgezoo_core.types import (
        LazyTensor,
        Model,
        QuantPlan,
        Recipe,
        Signature,
    )


class LoadedPlugin:
    """A plugin whose hooks can be called. Nobody else touches pluggy.

    Every method raises PluginError, naming the distribution, when the hook raises anything but an
    EdgezooError, or answers with the wrong type.
    """

    def __init__(self, plugin: Plugin, module: ModuleType) -> None:
        self.plugin = plugin
        self._module = module

    @cached_property
    def _manager(self) -> pluggy.PluginManager:
        from edgezoo_core import defaults  # brings torch: only a hook that is asked pays for it

        # One manager per family: a hook is asked of the owner, then of the defaults, of nobody
        # else. pluggy calls the last registered first.
        manager = pluggy.PluginManager("edgezoo")
        manager.add_hookspecs(hookspecs)
        # pluggy refuses arguments that the spec lacks: the old names are arguments, too.
        for hook, names in hookspecs.RENAMED.items():
            getattr(manager.hook, hook).spec.argnames += tuple(names)
        manager.register(defaults, "edgezoo-core:defaults")
        manager.register(self._module, f"{self.plugin.distribution}:{self.plugin.family}")
        manager.check_pending()
        return manager

    @cached_property
    def hooks(self) -> tuple[str, ...]:
        """The hooks that the plugin answers itself, in the order of the contract."""
        answered = {hook for hook, _, _ in _implementations(self._module)}
        return tuple(hook for hook in _arguments() if hook in answered)

    def answers(self, hook: str) -> bool:
        """Whether the plugin answers a hook itself, rather than leave it to the core."""
        return hook in self.hooks

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
        """Asks for the format of every weight.

        Raises:
            RecipeError: A format's blocks do not fill the rows of its weight.
        """
        from edgezoo_core import recipe as recipes
        from edgezoo_core.types import QuantPlan

        plan: QuantPlan = self._ask(
            "quant_recipe", QuantPlan, model=model, module=module, recipe=recipe
        )
        recipes.check_blocks(plan)
        return plan

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
        manager = self._manager
        for old, new in hookspecs.RENAMED.get(hook, {}).items():
            arguments[old] = arguments[new]
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


def contract_problem(module: ModuleType) -> str | None:
    """Returns what is wrong with a module's hooks, or None."""
    specs = _arguments()
    hooks = list(_implementations(module))
    if not hooks:
        return f"{module.__name__} has no function marked with @hookimpl"
    for hook, name, function in hooks:
        options = function.edgezoo_impl
        if options["wrapper"] or options["hookwrapper"]:
            return f"{name} is a wrapper; a model plugin answers for its own models only"
        if options["trylast"]:
            return f"{name} is trylast; the core's default would answer before it"
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
            if argument.name not in [*specs[hook], *hookspecs.RENAMED.get(hook, {})]:
                guess = nearest(argument.name, specs[hook])
                return f"{name}: unknown argument {argument.name}" + (
                    f"; did you mean {guess}?" if guess else f" (known: {', '.join(specs[hook])})"
                )
    return None


def outdated_arguments(module: ModuleType) -> list[tuple[str, str, str]]:
    """Returns hook, old name and new name of each argument that a module calls by its old name."""
    return [
        (hook, old, new)
        for hook, _, function in _implementations(module)
        for old, new in hookspecs.RENAMED.get(hook, {}).items()
        if old in inspect.signature(function).parameters
    ]


def _arguments() -> dict[str, list[str]]:
    """Returns the arguments of every hook of the contract."""
    return {
        hook: list(inspect.signature(function).parameters)
        for hook, function in vars(hookspecs).items()
        if hasattr(function, "edgezoo_spec")
    }


def _implementations(module: ModuleType) -> Iterator[tuple[str, str, Any]]:
    """Yields hook, name and function of each that a module marks with @hookimpl."""
    for name, function in vars(module).items():
        # Like pluggy, routines only: of some objects, torch.ops say, every attribute exists.
        if inspect.isroutine(function) and hasattr(function, "edgezoo_impl"):
            yield function.edgezoo_impl["specname"] or name, name, function
