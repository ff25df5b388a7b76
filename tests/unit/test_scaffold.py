"""What a new plugin is called, how its code is laid out, and what becomes of config fields."""

from __future__ import annotations

import ast
import math
import tomllib

import pytest

from edgezoo_core import hub_repo
from edgezoo_core.errors import CheckpointError, PluginError
from edgezoo_core.scaffold import identity
from edgezoo_core.scaffold.card import count, recipes
from edgezoo_core.scaffold.code import call, quoted
from edgezoo_core.scaffold.fields import Fields, literal
from edgezoo_core.scaffold.knowledge import Knowledge
from edgezoo_core.scaffold.leftovers import settle
from edgezoo_core.scaffold.names import Sizes
from edgezoo_core.scaffold.source import from_folder
from edgezoo_core.scaffold.writing import core_range

KNOWN = Knowledge(
    declared={"hidden_size": 4096, "head_dim": None, "hidden_act": "silu"},
    defaults={"hidden_size": 4096, "use_magic": False, "window": 7, "alibi": False},
)


@pytest.mark.parametrize(
    ("family", "module", "package", "distribution", "title"),
    [
        ("qwen2", "qwen2", "edgezoo_qwen2", "edgezoo-qwen2", "Qwen2"),
        ("my-model", "my_model", "edgezoo_my_model", "edgezoo-my-model", "MyModel"),
        ("my_model", "my_model", "edgezoo_my_model", "edgezoo-my-model", "MyModel"),
        # Words that the generated hooks use themselves.
        ("config", "config", "edgezoo_config", "edgezoo-config", "Config"),
    ],
)
def test_one_name_in_every_spelling(family, module, package, distribution, title):
    names = identity.identify(family, ())
    assert names.family == family
    assert (names.module, names.package) == (module, package)
    assert (names.distribution, names.title) == (distribution, title)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("Qwen2", "no name for a family"),
        ("2b", "no name for a family"),
        ("my--model", "no name for a family"),
        ("-model", "no name for a family"),
        ("my/model", "no name for a family"),
        ("../model", "no name for a family"),
        ("größe", "no name for a family"),
        ("", "no name for a family"),
        ("m" * 31, "no name for a family"),
        ("class", "a keyword of Python"),
        ("core", "edgezoo's own package"),
    ],
)
def test_what_is_no_name_is_refused(family, message):
    with pytest.raises(PluginError, match=message) as e:
        identity.identify(family, ())
    assert e.value.remedy


def test_an_installed_family_is_refused_in_any_spelling(site):
    site.add("my-model")
    for family in ("my-model", "my_model"):
        with pytest.raises(PluginError, match=r"installed already: edgezoo-my-model 1\.0"):
            identity.identify(family, [site.plugin("my-model")])


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.1.0", ">=0.1,<0.2"),
        ("0.12.3.dev4", ">=0.12,<0.13"),
        ("1.4.0", ">=1.4,<2"),
    ],
)
def test_a_plugin_takes_the_core_that_wrote_it(version, expected):
    assert core_range(version) == expected


def test_a_call_stays_on_one_line_as_long_as_it_fits():
    assert call("f", ["a", "b=1"], target="x") == "    x = f(a, b=1)"
    assert call("f", ["a"], target="return") == "    return f(a)"
    long = call("function", ["a" * 40, "b" * 40])
    assert long == f"    function(\n        {'a' * 40},\n        {'b' * 40},\n    )"


@pytest.mark.parametrize("text", ["plain", 'a "quote"', "back\\slash", "new\nline", "\x00", "ü"])
def test_quoted_text_is_one_string_of_python_and_of_toml(text):
    shown = "".join(c if c.isprintable() else "?" for c in text)
    assert ast.literal_eval(quoted(text)) == shown
    assert tomllib.loads(f"x = {quoted(text)}")["x"] == shown


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (1e-6, "1e-6"),
        (0.25, "0.25"),
        (True, "True"),
        (28, "28"),
        ("silu", '"silu"'),
        (None, ""),
        (math.nan, ""),
        (math.inf, ""),
        ([1], ""),
        ({"a": 1}, ""),
        ('"', ""),
        ("x" * 41, ""),
        ("\n", ""),
    ],
)
def test_only_plain_values_become_code(value, code):
    assert literal(value) == code


def test_fields_are_read_as_the_family_spells_them():
    fields = Fields({"hidden_size": 64, "n_head": 4, "hidden_act": "gelu"}, Knowledge())
    assert fields.integer("embedding_dim") == 'config.integer("hidden_size")'
    assert fields.integer("num_heads") == 'config.integer("n_head")'
    assert fields.integer("num_query_groups", "num_heads") == "num_heads"
    assert fields.read == {"hidden_size", "n_head"}
    assert fields.size("num_heads") == 4
    assert fields.size("vocab_size") is None


def test_defaults_are_those_of_the_class():
    fields = Fields({}, KNOWN)
    assert fields.integer("embedding_dim") == 'config.integer("hidden_size", 4096)'
    assert fields.call("integer", "head_dim", "a // b") == 'config.integer("head_dim", a // b)'
    # transformers ignores what its class does not declare.
    assert Fields({"num_kv_heads": 2}, KNOWN).spelling("num_query_groups") is None


def test_every_field_that_is_not_read_is_pinned_inert_or_undecided():
    config = {
        "architectures": ["XForCausalLM"],  # inert everywhere
        "hidden_size": 64,  # read
        "use_magic": False,  # transformers' default
        "window": 8,  # not its default
        "new_thing": "yes",  # nobody knows it
        "new_table": {"a": 1},
        "nothing": None,
        "resid_dropout": 0.5,
        "pretraining_tp": 2,
        "attention_bias": True,
        "mlp_bias": False,
        "alibi": True,
        "rotary_dim": 64,
    }
    left = settle(config, {"hidden_size"}, KNOWN)
    assert left.pinned == {
        "alibi": "False",
        "new_thing": '"yes"',
        "rotary_dim": "None",
        "use_magic": "False",
    }
    assert left.inert.keys() == {"resid_dropout", "pretraining_tp"}
    assert {u.name: u.reason.partition(":")[0] for u in left.undecided} == {
        "alibi": "refused",
        "attention_bias": "refused",
        "new_table": "ignored with a warning",
        "rotary_dim": "refused",
        "window": "refused",
    }


def test_a_field_whose_name_is_no_word_is_not_written_into_code():
    left = settle({'x"); import os': 1, "a b": 2}, (), KNOWN)
    assert left.pinned == {}
    assert len(left.undecided) == 2


@pytest.mark.parametrize(
    ("sizes", "absent"),
    [
        (Sizes(128, 4, 4, 32, 256), set()),
        (Sizes(96, 4, 4, 24, 256), {"dynamic_int4_block128"}),
        (Sizes(128, 4, 4, 32, 203), {"dynamic_int4_block32", "dynamic_int4_block128"}),
        (Sizes(128, 4, 4, 24, 256), {"dynamic_int4_block128"}),
        (Sizes(), set()),
    ],
)
def test_recipes_fit_the_shapes(sizes, absent):
    assert set(recipes(Sizes())) - set(recipes(sizes)) == absent


def test_a_tied_head_counts_once():
    shapes = {"embed.weight": (96, 64), "lm_head.weight": (96, 64), "norm.weight": (64,)}
    assert count(shapes, is_tied=False) == 2 * 96 * 64 + 64
    assert count(shapes, is_tied=True) == 96 * 64 + 64


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json"),
        ({"config.json": "{"}, "not JSON"),
        ({"config.json": "{}", "model.safetensors": "x"}, "no readable safetensors file"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        from_folder(tmp_path)


def test_a_folder_without_weights_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "config.json").write_text('{"_name_or_path": "acme/model"}')
    source = from_folder(tmp_path)
    assert source.repo == "acme/model"
    assert source.shapes == {}
    assert "no weights" in source.unread
    with pytest.raises(CheckpointError, match="does not name its architecture"):
        _ = source.architectures


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"license": "apache-2.0"}, "apache-2.0"),
        ({"license": "other", "license_name": "acme-research"}, "acme-research"),
        ({"license": "other"}, "other"),
        ({"license": ["mit", "gpl"]}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_licence_is_the_one_that_the_hub_states(card, expected):
    class Data:
        def __init__(self):
            self.__dict__.update(card)

    assert hub_repo.license_of(Data()) == expected
