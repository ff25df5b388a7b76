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
    from collections.abc import Sequence
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
        manager.register(defaults, "edgezoo-core:defaults")
        manager.register(self._module, f"{self.plugin.distribution}:{self.plugin.family}")
        manager.check_pending()
        return manager

    def answers(self, hook: str) -> bool:
        """Whether the plugin answers a hook itself, rather than leave it to the core."""
        return any(
            (f.edgezoo_impl["specname"] or name) == hook
            for name, f in vars(self._module).items()
            if inspect.isroutine(f) and hasattr(f, "edgezoo_impl")
        )

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
        manager = self._manager
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
