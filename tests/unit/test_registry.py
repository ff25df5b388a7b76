from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from edgezoo_core import HOOK_API, cards
from edgezoo_core.recipe import RECIPES

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))


def project_of(plugin: Path) -> dict:
    return tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def card_of(plugin: Path) -> cards.FamilyCard:
    (path,) = plugin.glob("edgezoo_*/models.toml")
    return cards.read_family(path)


def test_index_and_plugins_name_the_same_models():
    brought = {
        (model, card_of(p).family, project_of(p)["name"])
        for p in PLUGINS
        for model in card_of(p).models
    }
    entries = cards.read_index(ROOT / "registry.toml").values()
    listed = {(e.id, e.family, e.distribution) for e in entries}
    assert {p.name for p in PLUGINS} >= {"edgezoo-gemma", "edgezoo-phi2", "edgezoo-tinyllama"}
    assert listed == brought


def test_every_name_of_the_index_leads_to_one_distribution():
    entries = cards.index().values()
    named = {(n, e.distribution) for e in entries for n in (e.id, e.family, e.distribution)}
    assert len(named) == len({name for name, _ in named})


def test_installation_carries_the_index():
    assert cards.index() == cards.read_index(ROOT / "registry.toml")


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)
def test_card_fits_its_distribution(plugin):
    card, project = card_of(plugin), project_of(plugin)
    assert project["name"] == plugin.name
    assert list(project["entry-points"]["edgezoo"]) == [card.family]
    assert card.hook_api == HOOK_API


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)
def test_recipes_of_the_cards_exist(plugin):
    named = {r for m in card_of(plugin).models.values() for r in m.recipes}
    assert named
    assert named <= RECIPES.keys()


def test_every_summary_says_something():
    assert all(e.summary.strip() for e in cards.index().values())
