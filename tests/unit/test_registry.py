from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from edgezoo_core import HOOK_API, cards, registry
from edgezoo_core.errors import CardError
from edgezoo_core.recipe import RECIPES

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))

LINE = "[[models]]\nid = 'a'\nfamily = 'f'\ndistribution = 'edgezoo-a'\nsummary = 'A'\n"
RIVAL = "[[models]]\nid = 'b'\nfamily = 'f'\ndistribution = 'edgezoo-b'\nsummary = 'B'\n"


def project_of(plugin: Path) -> dict:
    return tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def card_of(plugin: Path) -> cards.FamilyCard:
    (path,) = plugin.glob("edgezoo_*/models.toml")
    return cards.read_family(path)


@pytest.fixture
def read_index(tmp_path):
    def read(text: str) -> dict[str, registry.IndexEntry]:
        path = tmp_path / "registry.toml"
        path.write_text(text, encoding="utf-8")
        return registry.read_index(path)

    return read


def test_index_and_plugins_name_the_same_models():
    brought = {
        (model, card_of(p).family, project_of(p)["name"])
        for p in PLUGINS
        for model in card_of(p).models
    }
    entries = registry.read_index(ROOT / "registry.toml").values()
    listed = {(e.id, e.family, e.distribution) for e in entries}
    assert {p.name for p in PLUGINS} >= {"edgezoo-gemma", "edgezoo-phi2", "edgezoo-tinyllama"}
    assert listed == brought


def test_every_name_of_the_index_leads_to_one_distribution():
    entries = registry.index().values()
    named = {(n, e.distribution) for e in entries for n in (e.id, e.family, e.distribution)}
    assert len(named) == len({name for name, _ in named})


def test_installation_carries_the_index():
    assert registry.index() == registry.read_index(ROOT / "registry.toml")


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
    assert all(e.summary.strip() for e in registry.index().values())


def test_index(read_index):
    entries = read_index(f"schema = 1\n{LINE}")
    assert entries == {"a": registry.IndexEntry("a", "f", "edgezoo-a", "A")}


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        (f"schema = 1\n{LINE}{LINE}", "a stands twice", "remove one"),
        (f"schema = 1\n{LINE}sumary = 'x'\n", "unknown key sumary", "did you mean `summary`?"),
        ("schema = 1\n[[models]]\nid = 'a'\n", "family is missing", "add `family"),
        (f"schema = 1\n{LINE}{RIVAL}", "family f is claimed by edgezoo-a and edge", "rename one"),
        (f"schema = 3\n{LINE}", "schema 3, expected 1", "upgrade edgezoo-core"),
        (f"schema = 1\nmodel = 3\n{LINE}", "unknown key model", "did you mean `models`?"),
    ],
)
def test_index_that_is_wrong(read_index, text, message, remedy):
    with pytest.raises(CardError, match=message) as e:
        read_index(text)
    assert e.value.remedy.startswith(remedy)
