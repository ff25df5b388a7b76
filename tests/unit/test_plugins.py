from __future__ import annotations

import logging
import sys

import pytest

from edgezoo_core import HOOK_API, hookspecs, plugins
from edgezoo_core.errors import PluginError
from edgezoo_core.plugins import PluginLoadError

REAL = {"gemma", "phi2", "tinyllama"}
MARKED = "from edgezoo_core import hookimpl\n"


def state_of_all() -> dict[str, str]:
    return {p.family: p.state for p in plugins.discover()}


# Discovery


def test_ok_plugin_shows_its_metadata_and_card(site):
    site.add(version="1.2.3")
    plugin = site.plugin()
    assert (plugin.state, plugin.reason) == ("ok", "")
    assert (plugin.distribution, plugin.version) == ("edgezoo-fake", "1.2.3")
    assert plugin.module == "edgezoo_fake"
    assert str(plugin) == "edgezoo-fake 1.2.3"
    assert plugin.is_usable
    assert list(plugin.card.models) == ["fake-1b"]


def test_plugins_are_listed_in_order_of_family(site):
    site.add("zebra")
    site.add("aardvark")
    families = [p.family for p in plugins.discover()]
    assert families == sorted({*REAL, "zebra", "aardvark"})


def test_discovery_runs_no_plugin_code(site, tmp_path):
    marker = tmp_path / "ran"
    site.add(body=f"import pathlib\npathlib.Path({str(marker)!r}).touch()")
    assert site.plugin().state == "ok"
    assert not marker.exists()
    assert "edgezoo_fake" not in sys.modules
    # The marker does show that the body ran.
    plugins.examine(site.plugin())
    assert marker.exists()


def test_discovery_of_a_dotted_module_does_not_import_its_parents(site, tmp_path):
    marker = tmp_path / "ran"
    site.add(
        module="edgezoo_deep.models.fake",
        parent_body=f"import pathlib\npathlib.Path({str(marker)!r}).touch()",
        body="raise ImportError('too early')",
    )
    plugin = site.plugin()
    assert (plugin.state, plugin.module) == ("ok", "edgezoo_deep.models.fake")
    assert not marker.exists()
    assert not [name for name in sys.modules if name.startswith("edgezoo_deep")]


def test_card_stands_beside_a_plugin_module_that_is_a_file(site):
    package = site.add(entry="edgezoo_fake.plugin")
    (package / "plugin.py").write_text("raise ImportError('too early')")
    plugin = site.plugin()
    assert (plugin.state, plugin.module) == ("ok", "edgezoo_fake.plugin")


def test_entry_points_of_other_groups_are_ignored(site):
    site.add("fake")
    info = next(site.folder.glob("*.dist-info"))
    (info / "entry_points.txt").write_text("[edgezoo_other]\nfake = edgezoo_fake\n")
    assert state_of_all().keys() == REAL


def test_distribution_that_stands_on_the_path_twice_counts_once(site, monkeypatch):
    site.add()
    monkeypatch.setattr(sys, "path", [str(site.folder), *sys.path])
    assert site.plugin().state == "ok"


# Cards that are wrong


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (None, "models.toml: No such file"),
        ("schema = 1\nhook_api = = 1", "models.toml: not TOML"),
        ("hook_api = 1", "schema is missing"),
        ("schema = 2", "schema 2, expected 1"),
        ("schema = 1\nhook_api = 1\nfamily = 'fake'", "architectures is missing"),
    ],
)
def test_invalid_card(site, card, reason):
    site.add(card=card)
    site.add("other")
    plugin = site.plugin()
    assert plugin.state == "invalid-card"
    assert reason in plugin.reason
    assert not plugin.is_usable
    assert site.plugin("other").state == "ok"


def test_card_of_another_family_is_invalid(site, models_toml):
    site.add("fake", card=models_toml("fakir"))
    plugin = site.plugin()
    assert plugin.state == "invalid-card"
    assert plugin.reason == "entry point 'fake', but models.toml says family 'fakir'"
    assert not plugin.is_usable


@pytest.mark.parametrize(
    "entry", ["edgezoo_absent", "edgezoo-fake", "edgezoo_absent.models.fake", ".relative"]
)
def test_package_that_cannot_be_found_is_isolated(site, entry):
    site.add(entry=entry)
    plugin = site.plugin()
    assert (plugin.state, plugin.module) == ("invalid-card", entry)
    assert plugin.reason
    assert {f: s for f, s in state_of_all().items() if f != "fake"} == dict.fromkeys(REAL, "ok")


def test_missing_package_is_named(site):
    site.add(entry="edgezoo_absent")
    assert site.plugin().reason == "package edgezoo_absent is not installed (reinstall the plugin)"


@pytest.mark.parametrize("key", [r'"two\nlines"', r'"a\u001b[31m red one"'])
def test_what_a_card_says_is_shown_as_one_plain_line(site, models_toml, key):
    site.add(card=f"{models_toml()}{key} = 1\n")
    plugin = site.plugin()
    assert plugin.state == "invalid-card"
    assert "unknown key" in plugin.reason
    assert plugin.reason.isprintable()


# Versions of the contract


def test_plugin_for_a_newer_contract_says_how_to_upgrade_the_core(site, models_toml):
    site.add(card=models_toml(hook_api=99))
    plugin = site.plugin()
    assert plugin.state == "incompatible"
    upgrade = "pip install --upgrade edgezoo-core"
    assert plugin.reason == (
        f"written for hook API 99, this edgezoo-core takes {HOOK_API} ({upgrade})"
    )
    with pytest.raises(PluginError, match=r"edgezoo-fake 1.0 is incompatible") as e:
        plugins.load(plugin)
    assert e.value.remedy == upgrade


def test_plugin_for_an_older_contract_works_until_that_is_dropped(site, models_toml, monkeypatch):
    site.add("old", card=models_toml("old", models=("old-1b",), hook_api=1))
    site.add("new", card=models_toml("new", models=("new-1b",), hook_api=2))
    monkeypatch.setattr(plugins, "HOOK_API", 3)
    assert [plugins.examine(site.plugin(f)).state for f in ("old", "new")] == ["ok", "ok"]
    monkeypatch.setattr(plugins, "OLDEST_HOOK_API", 2)
    assert site.plugin("new").state == "ok"
    old = site.plugin("old")
    upgrade = "pip install --upgrade edgezoo-old"
    assert old.state == "incompatible"
    assert old.reason == f"written for hook API 1, this edgezoo-core takes 2 and later ({upgrade})"
    with pytest.raises(PluginError, match="is incompatible") as e:
        plugins.load(old)
    assert e.value.remedy == upgrade


OLD_NAME = MARKED + "@hookimpl\ndef author(model, configuration): ...\n"


def test_old_name_of_an_argument_warns_at_each_load(site, monkeypatch, caplog):
    site.add(body=OLD_NAME)
    monkeypatch.setattr(hookspecs, "RENAMED", {"author": {"configuration": "config"}})
    plugin = site.plugin()
    assert plugins.examine(plugin).state == "ok"
    warning = (
        "plugin fake of edgezoo-fake 1.0: author takes configuration, which is now called config;"
        " the old name goes with the next minor release of edgezoo-core"
    )
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", warning)]
    plugins.load(plugin)
    assert caplog.messages == [warning, warning]


def test_new_name_of_an_argument_does_not_warn(site, monkeypatch, caplog):
    site.add()
    monkeypatch.setattr(hookspecs, "RENAMED", {"author": {"configuration": "config"}})
    assert plugins.examine(site.plugin()).state == "ok"
    assert not caplog.records


def test_old_name_of_an_argument_is_refused_once_it_is_gone(site):
    site.add(body=OLD_NAME)
    examined = plugins.examine(site.plugin())
    assert examined.state == "contract-failed"
    assert examined.reason == "author: unknown argument configuration; did you mean config?"


# Conflicts


def test_one_family_in_two_distributions_disables_both_and_names_both(site):
    site.add("fake", distribution="edgezoo-one", version="1.0")
    site.add("fake", distribution="edgezoo-two", version="2.0")
    found = [p for p in plugins.discover() if p.family == "fake"]
    reason = "family fake is claimed by edgezoo-one 1.0 and edgezoo-two 2.0"
    assert [(p.state, p.reason) for p in found] == [("conflict", reason)] * 2
    assert not any(p.is_usable for p in found)
    with pytest.raises(PluginError, match=reason) as e:
        plugins.load(found[0])
    assert e.value.remedy == "uninstall one of the two distributions"


def test_families_in_conflict_can_still_be_examined(site):
    site.add("fake", distribution="edgezoo-one")
    site.add("fake", distribution="edgezoo-two")
    found = [p for p in plugins.discover() if p.family == "fake"]
    assert [plugins.examine(p) for p in found] == found


def test_one_model_id_in_two_distributions_disables_that_id_alone(site, models_toml):
    site.add("one", card=models_toml("one", models=("shared", "one-1b")))
    site.add("two", card=models_toml("two", models=("two-1b", "shared")))
    one, two = site.plugin("one"), site.plugin("two")
    reason = "model shared is claimed by edgezoo-one 1.0 and edgezoo-two 1.0"
    assert (one.state, one.reason) == ("conflict", reason)
    assert (two.state, two.reason) == ("conflict", reason)
    assert one.is_usable
    assert two.is_usable
    assert list(one.card.models) == ["one-1b"]
    assert list(two.card.models) == ["two-1b"]


def test_conflict_leaves_other_plugins_alone(site):
    site.add("fake", distribution="edgezoo-one")
    site.add("fake", distribution="edgezoo-two")
    site.add("other")
    assert state_of_all() == {**dict.fromkeys([*REAL, "other"], "ok"), "fake": "conflict"}


def test_family_in_conflict_does_not_cost_a_third_its_model_ids(site, models_toml):
    site.add("fake", distribution="edgezoo-one", card=models_toml("fake", models=("shared",)))
    site.add("fake", distribution="edgezoo-two", card=models_toml("fake", models=("shared",)))
    site.add("third", card=models_toml("third", models=("shared",)))
    third = site.plugin("third")
    assert (third.state, list(third.card.models)) == ("ok", ["shared"])


def test_broken_plugin_conflicts_with_nobody(site, models_toml):
    site.add("one", card=models_toml("one", models=("shared",)))
    site.add("two", card=models_toml("two", models=("shared",), hook_api=99))
    assert site.plugin("one").state == "ok"
    assert site.plugin("two").state == "incompatible"


def test_disabled_plugin_conflicts_with_nobody(site, models_toml, monkeypatch):
    site.add("one", card=models_toml("one", models=("shared",)))
    site.add("two", card=models_toml("two", models=("shared",)))
    monkeypatch.setenv("EDGEZOO_PLUGINS", "one")
    assert site.plugin("one").state == "ok"


# EDGEZOO_PLUGINS


def test_edgezoo_plugins_disables_all_others(site, monkeypatch):
    site.add("one")
    site.add("two")
    monkeypatch.setenv("EDGEZOO_PLUGINS", "one, gemma")
    disabled = dict.fromkeys(["two", "phi2", "tinyllama"], "disabled")
    assert state_of_all() == {"one": "ok", "gemma": "ok", **disabled}
    assert site.plugin("two").reason == "not named in EDGEZOO_PLUGINS"


def test_empty_edgezoo_plugins_disables_all(site, monkeypatch):
    monkeypatch.setenv("EDGEZOO_PLUGINS", "")
    assert set(state_of_all().values()) == {"disabled"}


def test_card_of_a_disabled_plugin_is_not_read(site, monkeypatch):
    site.add(card="not TOML at all")
    monkeypatch.setenv("EDGEZOO_PLUGINS", "gemma")
    assert site.plugin().state == "disabled"


def test_disabled_plugin_is_not_loaded(site, monkeypatch):
    site.add()
    monkeypatch.setenv("EDGEZOO_PLUGINS", "gemma")
    with pytest.raises(PluginError, match=r"edgezoo-fake 1.0 is disabled") as e:
        plugins.load(site.plugin())
    assert e.value.remedy == "add fake to EDGEZOO_PLUGINS, or unset it"


# EDGEZOO_STRICT


def test_strict_discovery_raises_what_is_otherwise_a_state(site, monkeypatch):
    site.add(card="not TOML at all")
    assert site.plugin().state == "invalid-card"
    monkeypatch.setenv("EDGEZOO_STRICT", "1")
    with pytest.raises(PluginError, match=r"plugin fake of edgezoo-fake 1.0 is invalid-card") as e:
        plugins.discover()
    assert "pip install --upgrade edgezoo-fake" in e.value.remedy


def test_strict_discovery_raises_conflicts(site, monkeypatch):
    site.add("fake", distribution="edgezoo-one")
    site.add("fake", distribution="edgezoo-two")
    monkeypatch.setenv("EDGEZOO_STRICT", "1")
    with pytest.raises(PluginError, match=r"edgezoo-one 1.0 and edgezoo-two 1.0"):
        plugins.discover()


def test_strict_discovery_accepts_ok_and_disabled(site, monkeypatch):
    site.add("one")
    site.add("two", card="not TOML at all")
    monkeypatch.setenv("EDGEZOO_PLUGINS", "one")
    monkeypatch.setenv("EDGEZOO_STRICT", "1")
    assert state_of_all() == {"one": "ok", **dict.fromkeys([*REAL, "two"], "disabled")}


def test_strict_examination_raises_what_is_otherwise_a_state(site, monkeypatch):
    site.add(body="import nowhere_to_be_found")
    plugin = site.plugin()
    assert plugins.examine(plugin).state == "import-failed"
    monkeypatch.setenv("EDGEZOO_STRICT", "1")
    with pytest.raises(PluginError, match="nowhere_to_be_found"):
        plugins.examine(plugin)


def test_only_1_is_strict(site, monkeypatch):
    site.add(card="not TOML at all")
    monkeypatch.setenv("EDGEZOO_STRICT", "0")
    assert site.plugin().state == "invalid-card"


def test_broken_plugins_are_logged_with_name_and_cause(site, caplog):
    site.add(card=None)
    with caplog.at_level(logging.INFO, logger="edgezoo_core.plugins"):
        plugins.discover()
    (message,) = caplog.messages
    assert message.startswith("plugin fake of edgezoo-fake 1.0 is invalid-card: ")
    assert "models.toml: No such file" in message


# Import


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_f"),
        ("import sys\nsys.exit('bye')", "SystemExit: bye"),
        ("def author(:", "SyntaxError: "),
        ("raise ValueError('at import')", "ValueError: at import"),
    ],
)
def test_failed_import(site, body, reason):
    site.add(body=body)
    plugin = site.plugin()
    assert plugin.state == "ok", "discovery does not import"
    examined = plugins.examine(plugin)
    assert examined.state == "import-failed"
    assert examined.reason.startswith(f"import of edgezoo_fake failed: {reason}")
    assert type(examined.error).__name__ in reason
    assert not examined.is_usable
    with pytest.raises(PluginLoadError, match=r"plugin fake of edgezoo-fake 1.0: import of") as e:
        plugins.load(plugin)
    assert e.value.state == "import-failed"
    assert isinstance(e.value.__cause__, BaseException)
    assert "pip install --upgrade edgezoo-fake" in e.value.remedy
    assert "report it to its maintainers" in e.value.remedy


def test_interrupt_at_import_is_not_swallowed(site):
    site.add(body="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        plugins.examine(site.plugin())


def test_examination_of_what_cannot_load_changes_nothing(site):
    site.add(card=None, body="raise AssertionError('imported')")
    plugin = site.plugin()
    assert plugins.examine(plugin) is plugin


def test_import_failure_outranks_a_conflict_over_model_ids(site, models_toml):
    site.add("one", card=models_toml("one", models=("shared",)), body="import nowhere_to_be_found")
    site.add("two", card=models_toml("two", models=("shared",)))
    one = site.plugin("one")
    assert one.state == "conflict"
    assert plugins.examine(one).state == "import-failed"


# Contract


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def author(model, config): ...", "edgezoo_fake has no function marked with @hookimpl"),
        (
            MARKED + "@hookimpl\ndef tensor_name(model): ...",
            "tensor_name is no hook; did you mean tensor_names?",
        ),
        (MARKED + "@hookimpl\ndef zzz(model): ...", "zzz is no hook"),
        (
            MARKED + "@hookimpl(specname='auhtor')\ndef build(model): ...",
            "auhtor is no hook; did you mean author?",
        ),
        (
            MARKED + "@hookimpl(optionalhook=True)\ndef zzz(model): ...",
            "zzz is no hook",
        ),
        (
            MARKED + "@hookimpl\ndef author(model, config=None): ...",
            "author: argument config must not have a default",
        ),
        (
            MARKED + "@hookimpl\ndef author(model, *, config): ...",
            "author: argument config must be a plain one",
        ),
        (
            MARKED + "@hookimpl\ndef author(model, /, config): ...",
            "author: argument model must be a plain one",
        ),
        (
            MARKED + "@hookimpl\ndef author(*args): ...",
            "author: argument args must be a plain one",
        ),
        (
            MARKED + "@hookimpl\ndef author(**kwargs): ...",
            "author: argument kwargs must be a plain one",
        ),
        (
            MARKED + "@hookimpl\ndef author(modle, config): ...",
            "author: unknown argument modle; did you mean model?",
        ),
        (
            MARKED + "@hookimpl\ndef author(checkpoint): ...",
            "author: unknown argument checkpoint (known: model, config)",
        ),
        (
            MARKED + "@hookimpl(wrapper=True)\ndef author(model):\n    return (yield)",
            "author is a wrapper; a model plugin answers for its own models only",
        ),
        (
            MARKED + "@hookimpl(hookwrapper=True)\ndef author(model):\n    yield",
            "author is a wrapper; a model plugin answers for its own models only",
        ),
        (
            MARKED + "@hookimpl(trylast=True)\ndef load(model): ...",
            "load is trylast; the core's default would answer before it",
        ),
        (
            MARKED + "@hookimpl\ndef author(model): ...\n@hookimpl\ndef laod(model): ...",
            "laod is no hook; did you mean load?",
        ),
    ],
)
def test_broken_contract(site, body, reason):
    site.add(body=body)
    plugin = site.plugin()
    assert plugin.state == "ok", "discovery does not import"
    examined = plugins.examine(plugin)
    assert (examined.state, examined.reason) == ("contract-failed", reason)
    assert not examined.is_usable
    with pytest.raises(PluginLoadError, match=r"plugin fake of edgezoo-fake 1.0: ") as e:
        plugins.load(plugin)
    assert e.value.reason == reason
    assert "report it to its maintainers" in e.value.remedy


def test_objects_that_have_every_attribute_are_not_taken_for_hooks(site):
    site.add(body="from unittest.mock import Mock\nanything = Mock()")
    examined = plugins.examine(site.plugin())
    assert examined.reason == "edgezoo_fake has no function marked with @hookimpl"


def test_hooks_that_cannot_be_read_break_the_contract(site):
    hook = "@hookimpl\ndef author(model): ...\nauthor.__signature__ = 'nonsense'\n"
    site.add(body=MARKED + hook)
    examined = plugins.examine(site.plugin())
    assert examined.state == "contract-failed"
    assert examined.reason.startswith("its hooks cannot be read: TypeError: ")
    assert isinstance(examined.error, TypeError)


def test_examination_tells_the_hooks_in_the_order_of_the_contract(site):
    hook = "@hookimpl(specname='load')\ndef weights(): ...\n@hookimpl\ndef author(): ...\n"
    site.add(body=MARKED + hook)
    plugin = site.plugin()
    assert plugin.hooks == ()
    assert plugins.examine(plugin).hooks == ("author", "load")
