from __future__ import annotations

import pytest

from edgezoo_core import cards
from edgezoo_core.errors import CardError
from edgezoo_core.shapes import SignatureOptions


@pytest.fixture
def read(tmp_path):
    def read(text: str) -> cards.FamilyCard:
        path = tmp_path / "models.toml"
        path.write_text(text, encoding="utf-8")
        return cards.read_family(path)

    return read


def test_family_card(read, models_toml):
    card = read(models_toml("fake", models=("a", "b"), architectures=("X", "Y"), hook_api=7))
    assert (card.family, card.hook_api, card.architectures) == ("fake", 7, ("X", "Y"))
    assert list(card.models) == ["a", "b"]


def test_model_card_defaults(read, models_toml):
    card = read(models_toml()).models["fake-1b"]
    assert (card.checkpoint, card.revision, card.is_gated) == ("fake-org/fake-1b", "main", False)
    assert (card.recipes, card.default_recipe) == (("none", "dynamic_int8"), "dynamic_int8")
    assert card.signatures == SignatureOptions()
    assert card.config is None


def test_model_card_with_everything(read, models_toml):
    card = read(
        models_toml()
        + "revision = 'v2'\ngated = true\n"
        + "signatures = { prefill_lengths = [64, 16], kv_cache_length = 512,"
        + " kv_layout = 'default', mask_as_input = false }\n"
        + "[models.config]\nhidden_size = 8\n"
    ).models["fake-1b"]
    assert (card.revision, card.is_gated) == ("v2", True)
    assert card.signatures == SignatureOptions((16, 64), 512, "default", mask_as_input=False)
    assert card.config == {"hidden_size": 8}


@pytest.mark.parametrize("key", ["id", "title", "checkpoint", "license", "parameters"])
def test_missing_key_of_a_model(read, models_toml, key):
    lines = [line for line in models_toml().splitlines() if not line.startswith(f"{key} =")]
    with pytest.raises(CardError, match=f"{key} is missing") as e:
        read("\n".join(lines))
    assert e.value.remedy == f"add `{key} = …`"


@pytest.mark.parametrize("key", ["schema", "hook_api", "family", "architectures"])
def test_missing_key_of_a_family(read, models_toml, key):
    lines = [line for line in models_toml().splitlines() if not line.startswith(f"{key} =")]
    with pytest.raises(CardError, match=f"models.toml: {key} is missing") as e:
        read("\n".join(lines))
    assert e.value.remedy == f"add `{key} = …`"


def test_message_names_the_file_and_the_model(read, models_toml):
    with pytest.raises(CardError, match=r"models.toml: models\[fake-1b\]: title is 3, expected a"):
        read(models_toml().replace("title = 'fake-1b'", "title = 3"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("parameters = 1000", "parameters = true", "parameters is True, expected an integer"),
        ("parameters = 1000", "parameters = 1.5", "parameters is 1.5, expected an integer"),
        ("hook_api = 1", "hook_api = '1'", "hook_api is '1', expected an integer"),
        ("license = 'mit'", "license = ['mit']", "expected a string"),
        ("license = 'mit'", "license = 'mit'\ngated = 'no'", "expected true or false"),
        ("['FakeForCausalLM']", "'FakeForCausalLM'", "expected a list"),
        ("['FakeForCausalLM']", "[]", "expected a list of names"),
        ("['FakeForCausalLM']", "[1]", "expected a list of names"),
        ("['FakeForCausalLM']", "['']", "expected a list of names"),
        ("license = 'mit'", "license = 'mit'\nsignatures = 3", "expected a table"),
    ],
)
def test_value_of_the_wrong_kind(read, models_toml, old, new, message):
    text = models_toml()
    assert old in text
    with pytest.raises(CardError, match=message) as e:
        read(text.replace(old, new))
    assert e.value.remedy.startswith("correct `")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id = 'fake-1b'", "id = 'Fake 1B'", "id 'Fake 1B' must be lower-case"),
        ("id = 'fake-1b'", "id = 'org/fake'", "id 'org/fake' must be lower-case"),
        ("'fake-org/fake-1b'", "'fake-1b'", "checkpoint 'fake-1b' is not org/name"),
        ("'fake-org/fake-1b'", "'a/b/c'", "checkpoint 'a/b/c' is not org/name"),
        ("= 'dynamic_int8'", "= 'fp16'", "default_recipe 'fp16' not in recipes"),
        ("= 2048", "= 1279", "KV cache longer than the context"),
    ],
)
def test_card_that_contradicts_itself(read, models_toml, old, new, message):
    text = models_toml()
    assert old in text
    with pytest.raises(CardError, match=message) as e:
        read(text.replace(old, new))
    assert e.value.remedy == "correct the card"


@pytest.mark.parametrize(
    ("signatures", "message"),
    [
        ("{ prefill_lengths = [8.5] }", "prefill_lengths must be integers"),
        ("{ prefill_lengths = [true] }", "prefill_lengths must be integers"),
        ("{ prefill_lengths = [] }", "one or more positive numbers"),
        ("{ kv_cache_length = 100 }", "100 slots cannot hold a prefill of 128"),
        ("{ kv_layout = 'sideways' }", "unknown KV layout 'sideways'"),
    ],
)
def test_signatures_that_cannot_be_exported(read, models_toml, signatures, message):
    with pytest.raises(CardError, match=message) as e:
        read(models_toml() + f"signatures = {signatures}\n")
    assert e.value.remedy == "correct the card"


@pytest.mark.parametrize(
    ("addition", "message", "remedy"),
    [
        ("licence = 'mit'", "unknown key licence", "did you mean `license`?"),
        ("zzz = 1", "unknown key zzz", "remove it"),
        ("signatures = { kv_cache = 512 }", "signatures: unknown key kv_cache", "did you mean"),
    ],
)
def test_misspelt_key(read, models_toml, addition, message, remedy):
    with pytest.raises(CardError, match=message) as e:
        read(f"{models_toml()}{addition}\n")
    assert e.value.remedy.startswith(remedy)


def test_misspelt_key_of_a_family(read, models_toml):
    with pytest.raises(CardError, match=r"models.toml: unknown key arhcitectures") as e:
        read(models_toml().replace("schema = 1", "schema = 1\narhcitectures = []"))
    assert e.value.remedy == "did you mean `architectures`?"


def test_one_id_twice(read, models_toml):
    with pytest.raises(CardError, match="two models are called a") as e:
        read(models_toml(models=("a", "a")))
    assert e.value.remedy == "rename one"


@pytest.mark.parametrize(
    ("models", "message", "remedy"),
    [
        ("models = []", "no models", "add a [[models]] table"),
        ("models = [1]", "models must be tables", "write [[models]]"),
        ("", "models is missing", "add `models = …`"),
    ],
)
def test_family_without_models(read, models_toml, models, message, remedy):
    head = models_toml().partition("[[models]]")[0]
    with pytest.raises(CardError, match=message) as e:
        read(head + models)
    assert e.value.remedy == remedy


def test_schema_of_another_version(read, models_toml):
    newer = models_toml().replace("schema = 1", "schema = 2")
    with pytest.raises(CardError, match="schema 2, expected 1") as e:
        read(newer)
    assert e.value.remedy == "upgrade edgezoo-core"
    with pytest.raises(CardError, match="schema 0, expected 1") as e:
        read(newer.replace("schema = 2", "schema = 0"))
    assert e.value.remedy == "set schema = 1"


def test_file_that_is_missing(tmp_path):
    with pytest.raises(CardError, match=r"models.toml: No such file") as e:
        cards.read_family(tmp_path / "models.toml")
    assert e.value.remedy == "reinstall the distribution"


def test_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "models.toml").mkdir()
    with pytest.raises(CardError, match=r"models.toml: Is a directory"):
        cards.read_family(tmp_path / "models.toml")


@pytest.mark.parametrize("content", [b"schema = = 1", b"\xff\xfe"])
def test_file_that_is_not_toml(tmp_path, content):
    (tmp_path / "models.toml").write_bytes(content)
    with pytest.raises(CardError, match="not TOML") as e:
        cards.read_family(tmp_path / "models.toml")
    assert e.value.remedy == "correct the file"
