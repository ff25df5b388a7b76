from __future__ import annotations

import sys
from types import MappingProxyType, ModuleType, SimpleNamespace

import pytest
import torch

from edgezoo_core import hookimpl, hooks, hookspecs, plugins
from edgezoo_core.authoring import TensorNames
from edgezoo_core.cards import FamilyCard
from edgezoo_core.config import Config
from edgezoo_core.errors import ConfigError, PluginError
from edgezoo_core.hooks import LoadedPlugin
from edgezoo_core.plugins import Plugin
from edgezoo_core.recipe import resolve
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.types import Model, QuantPlan, Signature

MODEL = Model("fake", None, "fake-org/fake-1b@abc")
CONFIG = Config({}, "config.json of fake")
NAMES = TensorNames(embedding="embed", final_norm="norm")
LAZY = SimpleNamespace(shape=(2, 2), sources=("a",), read=lambda: torch.zeros(2, 2))
#: Begins every message about a hook: the hook, the family, the distribution and its version.
WHERE = r"^hook `{}` of plugin fake \(edgezoo-fake 1\.0\): "


@pytest.fixture
def loaded(monkeypatch):
    """Loads a plugin whose module has these functions as its hooks."""

    def loaded(*functions):
        module = ModuleType("edgezoo_fake")
        for function in functions:
            setattr(module, function.__name__, hookimpl(function))
        monkeypatch.setitem(sys.modules, "edgezoo_fake", module)
        card = FamilyCard("fake", 1, ("FakeForCausalLM",), {})
        return plugins.load(Plugin("fake", "edgezoo-fake", "1.0", "edgezoo_fake", card=card))

    return loaded


def authored(*, training: bool = False, device: str = "meta") -> torch.nn.Module:
    module = torch.nn.Linear(2, 2, device=device).train(training)
    module.config = object()
    return module


def broken(hook: str, problem: str):
    return pytest.raises(PluginError, match=WHERE.format(hook) + problem)


def always(name: str, answer):
    """Returns a hook without arguments that gives the answer."""

    def hook():
        return answer

    hook.__name__ = name
    return hook


# Any hook


def test_sound_plugin_stays_ok_when_examined(loaded):
    plugin = loaded(always("author", None)).plugin
    examined = plugins.examine(plugin)
    assert (examined.state, examined.hooks) == ("ok", ("author",))


def test_hook_gets_the_arguments_that_it_names(loaded):
    seen = []

    def author(config, model):
        seen.append((model, config))
        return authored()

    loaded(author).author(MODEL, CONFIG)
    assert seen == [(MODEL, CONFIG)]


def test_specname_gives_a_function_another_name(loaded, monkeypatch):
    module = ModuleType("edgezoo_fake")
    module.build = hookimpl(specname="author")(lambda model: authored())
    plugin = loaded(always("author", None)).plugin
    monkeypatch.setitem(sys.modules, "edgezoo_fake", module)
    assert isinstance(plugins.load(plugin).author(MODEL, CONFIG), torch.nn.Linear)


@pytest.mark.parametrize("error", [ValueError("no such norm"), SystemExit("no such norm")])
def test_hook_that_raises_is_named_with_its_distribution(loaded, error):
    def author(model):
        raise error

    with broken("author", f"it raised {type(error).__name__}: no such norm") as e:
        loaded(author).author(MODEL, CONFIG)
    assert e.value.__cause__ is error
    assert e.value.remedy == "report it to the maintainers of edgezoo-fake"


def test_error_of_edgezoo_passes_through_unchanged(loaded):
    error = ConfigError("rope is scaled", remedy="use another checkpoint")

    def author(config):
        raise error

    with pytest.raises(ConfigError) as e:
        loaded(author).author(MODEL, CONFIG)
    assert e.value is error
    assert e.value.remedy == "use another checkpoint"


def test_interrupt_in_a_hook_is_not_swallowed(loaded):
    def author():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loaded(author).author(MODEL, CONFIG)


def test_plugins_answer_for_their_own_family_only(loaded):
    first = loaded(always("tensor_names", NAMES))
    second = loaded(always("tensor_names", TensorNames(embedding="other")))
    assert first.tensor_names(MODEL, CONFIG, frozenset()) is NAMES
    assert second.tensor_names(MODEL, CONFIG, frozenset()).embedding == "other"


# What changes between versions of the contract


class NextPlugin(LoadedPlugin):
    """What calls the hooks in a later core, whose `author` has one more argument."""

    def author(self, model, config):
        arguments = {"model": model, "config": config, "dialect": "new"}
        return self._ask("author", torch.nn.Module, **arguments)


@pytest.fixture
def next_core(monkeypatch):
    """A core whose `author` has one more argument."""

    @hookspecs.hookspec(firstresult=True)
    def author(model, config, dialect): ...

    monkeypatch.setattr(hookspecs, "author", author)
    monkeypatch.setattr(hooks, "LoadedPlugin", NextPlugin)


def test_argument_that_a_hook_gains_leaves_older_plugins_alone(loaded, next_core, caplog):
    seen = []

    def author(model, config):
        seen.append((model, config))
        return authored()

    loaded(author).author(MODEL, CONFIG)
    assert seen == [(MODEL, CONFIG)]
    assert not caplog.records


def newer_author(model, dialect):
    assert dialect == "new"
    return authored()


newer_author.__name__ = "author"


def test_argument_that_a_hook_gains_is_there_for_newer_plugins(loaded, next_core):
    assert isinstance(loaded(newer_author).author(MODEL, CONFIG), torch.nn.Linear)


def test_argument_that_a_hook_does_not_have_yet_is_refused(loaded):
    with pytest.raises(PluginError, match="author: unknown argument dialect"):
        loaded(newer_author)


@pytest.mark.parametrize("names", ["configuration", "model, configuration, config"])
def test_argument_that_was_renamed_is_handed_over_by_its_old_name(
    loaded, names, monkeypatch, caplog
):
    monkeypatch.setattr(hookspecs, "RENAMED", {"author": {"configuration": "config"}})
    scope = {"seen": [], "authored": authored}
    exec(f"def author({names}):\n seen.append(configuration)\n return authored()", scope)
    loaded(scope["author"]).author(MODEL, CONFIG)
    assert scope["seen"] == [CONFIG]
    assert len(caplog.messages) == 1
    # Other plugins are asked as ever.
    plain = loaded(always("author", authored()))
    assert isinstance(plain.author(MODEL, CONFIG), torch.nn.Linear)
    assert len(caplog.messages) == 1


# author


def test_author_gives_the_module_as_it_is(loaded):
    module = authored()
    assert loaded(always("author", module)).author(MODEL, CONFIG) is module


def test_author_of_the_wrong_type(loaded):
    with broken("author", "it returned a dict, expected Module"):
        loaded(always("author", {})).author(MODEL, CONFIG)


def test_author_that_returns_none(loaded):
    with broken("author", "it returned None, and the core has no default for it"):
        loaded(always("author", None)).author(MODEL, CONFIG)


def test_author_that_is_missing(loaded):
    with broken("author", "it returned None, and the core has no default for it"):
        loaded(always("tensor_names", NAMES)).author(MODEL, CONFIG)


def test_author_of_a_module_in_training_mode(loaded):
    with broken("author", r"the module is in training mode; call .eval\(\)"):
        loaded(always("author", authored(training=True))).author(MODEL, CONFIG)


def test_author_of_a_module_with_real_parameters(loaded):
    with broken("author", "parameters are not on meta: weight, bias"):
        loaded(always("author", authored(device="cpu"))).author(MODEL, CONFIG)


def test_author_of_a_module_with_real_buffers_is_fine(loaded):
    module = authored()
    module.register_buffer("rope", torch.zeros(2))
    assert loaded(always("author", module)).author(MODEL, CONFIG) is module


def test_author_of_a_module_without_config(loaded):
    module = torch.nn.Linear(2, 2, device="meta").eval()
    with broken("author", r"the module has no `.config` \(litert-torch's ModelConfig\)"):
        loaded(always("author", module)).author(MODEL, CONFIG)


# tensor_names


def test_tensor_names_of_the_wrong_type(loaded):
    with broken("tensor_names", "it returned a dict, expected TensorNames"):
        loaded(always("tensor_names", {})).tensor_names(MODEL, CONFIG, frozenset())


def test_tensor_names_that_are_missing(loaded):
    with broken("tensor_names", "it returned None, and the core has no default for it"):
        loaded(always("author", None)).tensor_names(MODEL, CONFIG, frozenset())


# load


@pytest.mark.parametrize("kind", [dict, MappingProxyType])
def test_load_takes_any_mapping_of_lazy_tensors(loaded, kind):
    answer = kind({"weight": LAZY})
    assert loaded(always("load", answer)).load(MODEL, authored(), None, NAMES) is answer


@pytest.mark.parametrize(
    ("value", "name"),
    [(torch.zeros(2, 2), "Tensor"), ("embed.weight", "str"), (None, "NoneType")],
)
def test_load_of_values_that_are_not_lazy(loaded, value, name):
    with broken("load", f"bias is a {name}, not a lazy tensor"):
        loaded(always("load", {"weight": LAZY, "bias": value})).load(MODEL, authored(), None, NAMES)


def test_load_of_the_wrong_type(loaded):
    with broken("load", "it returned a list, expected Mapping"):
        loaded(always("load", [LAZY])).load(MODEL, authored(), None, NAMES)


# quant_recipe


def test_quant_recipe_of_the_plugin_beats_the_default(loaded):
    plan = QuantPlan("mine", ())
    assert loaded(always("quant_recipe", plan)).quant_recipe(MODEL, authored(), None) is plan


@pytest.mark.parametrize("hook", ["quant_recipe", "author"])
def test_none_and_a_missing_hook_take_the_default(loaded, hook):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2, device="meta"))
    plan = loaded(always(hook, None)).quant_recipe(MODEL, module, resolve("dynamic_int8"))
    assert (plan.name, [r.parameter for r in plan.rules]) == ("dynamic_int8", ["0.weight"])


def test_quant_recipe_of_the_wrong_type(loaded):
    with broken("quant_recipe", "it returned a str, expected QuantPlan"):
        loaded(always("quant_recipe", "int8")).quant_recipe(MODEL, authored(), None)


# signatures


def signature(name: str) -> Signature:
    return Signature(name, authored(), {})


@pytest.mark.parametrize("kind", [list, tuple])
def test_signatures_of_the_plugin(loaded, kind):
    answer = kind([signature("prefill_8"), signature("decode")])
    asked = loaded(always("signatures", answer))
    assert asked.signatures(MODEL, authored(), SignatureOptions()) is answer


def test_signatures_with_one_name_twice(loaded):
    answer = [signature("prefill_8"), signature("decode"), signature("decode")]
    with broken("signatures", "two signatures are called decode"):
        loaded(always("signatures", answer)).signatures(MODEL, authored(), SignatureOptions())


@pytest.mark.parametrize("answer", [[], ["decode"], [None]])
def test_signatures_that_are_none(loaded, answer):
    with broken("signatures", "it must return one or more Signature"):
        loaded(always("signatures", answer)).signatures(MODEL, authored(), SignatureOptions())


def test_signatures_of_the_wrong_type(loaded):
    with broken("signatures", "it returned a dict, expected list or tuple"):
        loaded(always("signatures", {})).signatures(MODEL, authored(), SignatureOptions())
