from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgezoo_core import registry, targets
from edgezoo_core.cards import FamilyCard, ModelCard
from edgezoo_core.errors import TargetError
from edgezoo_core.plugins import Plugin
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.targets import Target


def model_card(model_id: str, revision: str = "main") -> ModelCard:
    return ModelCard(
        id=model_id,
        title=model_id,
        checkpoint=f"fake-org/{model_id}",
        revision=revision,
        license="mit",
        is_gated=False,
        parameters=1000,
        context_length=2048,
        recipes=("none",),
        default_recipe="none",
        signatures=SignatureOptions(),
    )


def plugin(family: str, *models: ModelCard, architectures: tuple[str, ...] = ()) -> Plugin:
    claimed = architectures or (f"{family.title()}ForCausalLM",)
    card = FamilyCard(family, 1, claimed, {m.id: m for m in models})
    return Plugin(family, f"edgezoo-{family}", "1.0", f"edgezoo_{family}", card=card)


CARD = model_card("fake-1b", revision="v1")
FAKE = plugin("fake", CARD)
OTHER = plugin("other", model_card("other-1b"))
PLUGINS = [FAKE, OTHER]


@pytest.fixture(autouse=True)
def index(monkeypatch):
    entries = {
        "fake-1b": registry.IndexEntry("fake-1b", "fake", "edgezoo-fake", "a model"),
        "absent-1b": registry.IndexEntry("absent-1b", "absent", "edgezoo-absent", "a model"),
        "fake-9b": registry.IndexEntry("fake-9b", "fake", "edgezoo-fake", "newer than the plugin"),
    }
    monkeypatch.setattr(registry, "index", lambda: entries)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


# Model ids


def test_model_id_means_its_cards_checkpoint():
    target = targets.parse("fake-1b", PLUGINS)
    assert target == Target("fake-1b", CARD, repo="fake-org/fake-1b", revision="v1")
    assert str(target) == "fake-org/fake-1b@v1"


def test_revision_of_a_model_id():
    assert targets.parse("fake-1b@v2", PLUGINS).revision == "v2"
    assert targets.parse("fake-1b", PLUGINS, revision="v2").revision == "v2"


def test_unknown_id_suggests_the_nearest_installed_or_listed():
    with pytest.raises(TargetError, match="no model is called 'fake-1'") as e:
        targets.parse("fake-1", PLUGINS)
    assert e.value.remedy == "did you mean fake-1b?"
    with pytest.raises(TargetError, match="no model is called 'absnt-1b'") as e:
        targets.parse("absnt-1b", PLUGINS)
    assert e.value.remedy == "did you mean absent-1b?"


def test_unknown_id_like_none_points_to_the_list():
    with pytest.raises(TargetError, match="no model is called 'qqqqqq'") as e:
        targets.parse("qqqqqq", PLUGINS)
    assert e.value.remedy == "see `edgezoo list --available`"


def test_unknown_id_mentions_broken_plugins():
    broken = replace(OTHER, state="invalid-card", reason="no TOML", card=None)
    with pytest.raises(TargetError, match=r"no model is called 'other-1b' \(broken plugins: other"):
        targets.parse("other-1b", [FAKE, broken])


def test_listed_id_that_is_not_installed_says_what_to_install():
    with pytest.raises(TargetError, match="absent-1b is not installed") as e:
        targets.parse("absent-1b", PLUGINS)
    assert e.value.remedy == "run: pip install edgezoo-absent"


def test_listed_id_of_a_broken_plugin_says_what_is_broken():
    broken = replace(FAKE, state="incompatible", reason="written for hook API 9")
    with pytest.raises(TargetError, match="which is incompatible: written for hook API 9") as e:
        targets.parse("fake-1b", [broken, OTHER])
    assert "fake-1b is in edgezoo-fake 1.0" in e.value.message
    assert e.value.remedy == "see `edgezoo plugins`"


def test_listed_id_that_the_installed_plugin_lacks_says_to_upgrade():
    with pytest.raises(TargetError, match=r"edgezoo-fake 1.0 does not have fake-9b yet") as e:
        targets.parse("fake-9b", PLUGINS)
    assert e.value.remedy == "run: pip install --upgrade edgezoo-fake"


def test_broken_family_is_named_even_if_its_distribution_has_a_sound_one():
    sound = replace(plugin("sound", model_card("sound-1b")), distribution="edgezoo-fake")
    broken = replace(FAKE, state="invalid-card", reason="no TOML", card=None)
    with pytest.raises(TargetError, match="which is invalid-card: no TOML"):
        targets.parse("fake-1b", [sound, broken])


# Hub repos


def test_repo_without_a_card():
    target = targets.parse("someone/My.Tune_1", PLUGINS)
    assert target == Target("My.Tune_1", None, repo="someone/My.Tune_1", revision="main")


def test_repo_of_a_card_takes_its_name_and_revision():
    target = targets.parse("fake-org/fake-1b", PLUGINS)
    assert target == Target("fake-1b", CARD, repo="fake-org/fake-1b", revision="v1")


@pytest.mark.parametrize("revision", ["v2", "refs/pr/1", "0123abc"])
def test_repo_at_a_revision(revision):
    assert targets.parse(f"someone/tune@{revision}", PLUGINS).revision == revision
    assert targets.parse("someone/tune", PLUGINS, revision=revision).revision == revision
    assert targets.parse(f"fake-org/fake-1b@{revision}", PLUGINS).revision == revision


def test_revision_given_twice_alike():
    assert targets.parse("someone/tune@v2", PLUGINS, revision="v2").revision == "v2"


@pytest.mark.parametrize("text", ["someone/tune@v2", "fake-1b@v2"])
def test_revisions_that_disagree(text):
    with pytest.raises(TargetError, match=f"{text} and --revision v3 name two revisions") as e:
        targets.parse(text, PLUGINS, revision="v3")
    assert e.value.remedy == "give one of them"


def test_card_of_an_unusable_plugin_is_not_applied():
    broken = replace(FAKE, state="incompatible", reason="written for hook API 9")
    assert targets.parse("fake-org/fake-1b", [broken]).card is None


def test_chosen_card_describes_a_repo():
    target = targets.parse("someone/tune", PLUGINS, card="fake-1b")
    assert target == Target("tune", CARD, repo="someone/tune", revision="main")


def test_chosen_card_that_is_unknown():
    with pytest.raises(TargetError, match="no model is called 'fake-1'") as e:
        targets.parse("someone/tune", PLUGINS, card="fake-1")
    assert e.value.remedy == "did you mean fake-1b?"


def test_chosen_card_must_not_contradict_a_model_id():
    assert targets.parse("fake-1b", PLUGINS, card="fake-1b").card == CARD
    with pytest.raises(TargetError, match="other-1b is not a fake-1b") as e:
        targets.parse("other-1b", PLUGINS, card="fake-1b")
    assert e.value.remedy == "leave out --card"


# Folders


@pytest.mark.parametrize("text", ["./org/tune", "../{here}/org/tune", "{root}/org/tune"])
def test_spellings_of_a_folder(here, text):
    text = text.format(here=here.name, root=here)
    target = targets.parse(text, PLUGINS)
    assert target == Target("tune", None, folder=here.resolve() / "org/tune")
    assert str(target) == str(here.resolve() / "org/tune")


def test_folder_in_the_home_folder(here):
    assert targets.parse("~/org/tune", PLUGINS).folder == here.resolve() / "org/tune"


def test_current_folder_goes_by_its_name(here):
    (here / "my tune!").mkdir()
    assert targets.parse("./my tune!", PLUGINS).name == "my-tune"
    assert targets.parse(".", PLUGINS).folder == here.resolve()


def test_root_folder_has_a_name_too():
    assert targets.parse("/", PLUGINS).name == "model"


def test_folder_with_a_chosen_card(here):
    target = targets.parse("./tune", PLUGINS, card="fake-1b")
    assert (target.card, target.repo) == (CARD, None)


def test_folder_has_no_revision():
    with pytest.raises(TargetError, match="a folder has no revision") as e:
        targets.parse("./tune", PLUGINS, revision="v2")
    assert e.value.remedy == "leave out --revision"


@pytest.mark.parametrize(("revision", "spelling"), [(None, "org/tune@main"), ("v2", "org/tune@v2")])
def test_folder_that_looks_like_a_repo_gets_both_spellings(here, revision, spelling):
    (here / "org/tune").mkdir(parents=True)
    with pytest.raises(TargetError, match="org/tune is a folder here and could be a hub") as e:
        targets.parse("org/tune", PLUGINS, revision=revision)
    assert e.value.remedy == f"write ./org/tune for the folder, or {spelling} for the repo"
    assert targets.parse("./org/tune", PLUGINS).folder == here.resolve() / "org/tune"
    assert targets.parse(spelling, PLUGINS).repo == "org/tune"


@pytest.mark.parametrize("name", ["tune", "a/b/c"])
def test_relative_folder_that_cannot_be_a_repo(here, name):
    (here / name).mkdir(parents=True)
    with pytest.raises(TargetError, match=f"{name} is no model id") as e:
        targets.parse(name, PLUGINS)
    assert e.value.remedy == f"write ./{name} for the folder"


def test_model_id_beats_a_folder_of_the_same_name(here):
    (here / "fake-1b").mkdir()
    assert targets.parse("fake-1b", PLUGINS).card == CARD


# Families


TUNE = Target("tune", repo="someone/tune")


def config(*architectures: str) -> dict[str, list[str]]:
    return {"architectures": list(architectures)}


def test_architecture_chooses_the_family():
    assert targets.choose_family(TUNE, config("OtherForCausalLM"), PLUGINS) == OTHER


def test_two_families_with_one_architecture_need_a_choice():
    rival = plugin("rival", architectures=("FakeForCausalLM", "RivalForCausalLM"))
    claimed = config("FakeForCausalLM")
    with pytest.raises(TargetError, match="FakeForCausalLM is claimed by") as e:
        targets.choose_family(TUNE, claimed, [FAKE, rival])
    assert "fake (edgezoo-fake 1.0) and rival (edgezoo-rival 1.0)" in e.value.message
    assert e.value.remedy == "pass --family fake or --family rival"
    assert targets.choose_family(TUNE, claimed, [FAKE, rival], family="rival") == rival
    assert targets.choose_family(TUNE, claimed, [FAKE, rival], family="fake") == FAKE


def test_unusable_family_claims_nothing():
    broken = replace(plugin("rival", architectures=("FakeForCausalLM",)), state="incompatible")
    assert targets.choose_family(TUNE, config("FakeForCausalLM"), [broken, FAKE]) == FAKE
    with pytest.raises(TargetError, match=r"no usable family is called 'rival'.*fake\)") as e:
        targets.choose_family(TUNE, config("FakeForCausalLM"), [broken, FAKE], family="rival")
    assert e.value.remedy == "see `edgezoo plugins`"


def test_family_that_is_not_installed():
    with pytest.raises(TargetError, match=r"called 'rival' \(installed: none\)"):
        targets.choose_family(TUNE, None, [], family="rival")


@pytest.mark.parametrize(
    "fields", [None, {}, {"architectures": None}, {"architectures": []}, {"architectures": "Fake"}]
)
def test_config_without_architectures(fields):
    with pytest.raises(TargetError, match=r"someone/tune@main has no config.json that names") as e:
        targets.choose_family(TUNE, fields, PLUGINS)
    assert "pass --card MODEL" in e.value.remedy


def test_unknown_architecture():
    with pytest.raises(TargetError, match="no installed family converts NewForCausalLM") as e:
        targets.choose_family(TUNE, config("NewForCausalLM"), PLUGINS)
    assert "(installed: FakeForCausalLM, OtherForCausalLM)" in e.value.message
    assert "edgezoo list --available" in e.value.remedy


@pytest.mark.parametrize(
    "fields", [None, config("FakeForCausalLM"), config("X", "FakeForCausalLM")]
)
def test_card_chooses_the_family_that_has_it(fields):
    target = replace(TUNE, card=CARD)
    assert targets.choose_family(target, fields, [OTHER, FAKE]) == FAKE


def test_card_settles_what_two_families_claim():
    rival = plugin("rival", architectures=("FakeForCausalLM",))
    target = replace(TUNE, card=CARD)
    assert targets.choose_family(target, config("FakeForCausalLM"), [rival, FAKE]) == FAKE


def test_card_of_another_architecture():
    target = replace(TUNE, card=CARD)
    with pytest.raises(TargetError, match="someone/tune@main is a OtherForCausalLM, but") as e:
        targets.choose_family(target, config("OtherForCausalLM"), PLUGINS)
    assert "fake-1b is a FakeForCausalLM" in e.value.message
    assert e.value.remedy == "leave out --card, or name another"
