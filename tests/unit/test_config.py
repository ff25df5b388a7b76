from __future__ import annotations

import math

import pytest

from edgezoo_core.config import Config, is_same_reading
from edgezoo_core.config_fields import CHANGES_MATHEMATICS, INERT
from edgezoo_core.errors import ConfigError
from edgezoo_core.rope import LinearScaling, Llama3Scaling, Rope


def config(**fields) -> Config:
    return Config(fields, "config.json of fake")


# Accessors


def test_a_share_of_the_head_is_refused_where_whole_heads_are_rotated():
    for fields in (
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ):
        with pytest.raises(ConfigError, match=r"partial_rotary_factor = 0\.5 is not implemented"):
            config(**fields).rope()
    assert config(partial_rotary_factor=1.0).rope().partial_factor == 1.0


def test_values_that_are_there():
    c = config(hidden_size=8, eps=1e-6, tied=True, act="silu")
    assert c.integer("hidden_size", 1) == 8
    assert c.number("eps", 1.0) == 1e-6
    assert c.flag("tied", False) is True
    assert c.choice("act", {"silu": "SILU", "gelu": "GELU"}, "gelu") == "SILU"


def test_integer_is_a_number_and_number_is_a_float():
    assert isinstance(config(theta=10000).number("theta"), float)


@pytest.mark.parametrize("fields", [{}, {"x": None}])
def test_absent_and_null_take_the_default(fields):
    c = config(**fields)
    assert c.integer("x", 3) == 3
    assert c.number("x", 0.5) == 0.5
    assert c.flag("x", False) is False
    assert c.choice("x", {"silu": 1}, "silu") == 1
    c.only("x", False, True)


@pytest.mark.parametrize("fields", [{}, {"x": None}])
@pytest.mark.parametrize(
    "read",
    [
        lambda c: c.integer("x"),
        lambda c: c.number("x"),
        lambda c: c.flag("x"),
        lambda c: c.choice("x", {"silu": 1}),
    ],
)
def test_absent_and_null_are_missing_without_a_default(fields, read):
    with pytest.raises(ConfigError, match=r"config.json of fake: x is missing") as e:
        read(config(**fields))
    assert e.value.remedy == "add it to the checkpoint's config.json"


@pytest.mark.parametrize("value", [True, False, 0, -1, 8.0, 8.5, "8", [8], math.nan])
def test_not_a_positive_integer(value):
    with pytest.raises(ConfigError, match=r"x is .*, expected a positive integer") as e:
        config(x=value).integer("x", 3)
    assert e.value.remedy == "correct the checkpoint's config.json"


@pytest.mark.parametrize("value", [True, 0, 0.0, -1.0, math.nan, math.inf, -math.inf, "1", [1.0]])
def test_not_a_positive_number(value):
    with pytest.raises(ConfigError, match=r"x is .*, expected a positive number") as e:
        config(x=value).number("x", 3.0)
    assert e.value.remedy == "correct the checkpoint's config.json"


@pytest.mark.parametrize("value", [0, 1, "true", [], 1.0])
def test_not_a_flag(value):
    with pytest.raises(ConfigError, match=r"x is .*, expected true or false"):
        config(x=value).flag("x", True)


@pytest.mark.parametrize("value", ["relu", 3, ["silu"], True])
def test_choice_that_is_not_implemented(value):
    with pytest.raises(ConfigError, match=r"x = .* is not implemented by this family") as e:
        config(x=value).choice("x", {"silu": 1, "gelu": 2})
    assert "implemented: gelu, silu" in e.value.message
    assert "a plugin that implements it" in e.value.remedy


@pytest.mark.parametrize(("value", "allowed"), [(0, False), (1, True), (1, 1.0), (2, 1), ("", 0)])
def test_only_compares_the_kind_too(value, allowed):
    with pytest.raises(ConfigError, match=r"x = .* is not implemented by this family") as e:
        config(x=value).only("x", allowed)
    assert f"implemented: {allowed!r}" in e.value.message


def test_only_accepts_what_is_allowed():
    c = config(x=False, y=1.0)
    c.only("x", None, False)
    c.only("y", 1.0)
    assert c.leftovers() == {}


# Rope


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5000.0, "partial_rotary_factor": 0.5},
        {"rope_theta": 5000.0, "partial_rotary_factor": 0.5, "rope_scaling": None},
        {"rope_theta": 5000.0, "rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 0.5}},
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000,
                "partial_rotary_factor": 0.5,
                "factor": None,
            }
        },
        {"rope_theta": 5000, "rope_parameters": {"rope_theta": 5000.0}}
        | {"partial_rotary_factor": 0.5},
    ],
)
def test_rope_in_both_spellings(fields):
    c = config(**fields)
    assert c.rope(default_partial_factor=1.0) == Rope(theta=5000.0, partial_factor=0.5)
    assert c.leftovers() == {}


def test_rope_takes_the_authors_defaults():
    assert config().rope() == Rope(10000.0, 1.0)
    assert config(rope_theta=None, rope_parameters=None).rope(1e6, 0.25) == Rope(1e6, 0.25)


@pytest.mark.parametrize("name", ["rope_theta", "partial_rotary_factor"])
def test_rope_spellings_that_disagree(name):
    fields = {name: 0.5, "rope_parameters": {name: 0.25}}
    with pytest.raises(ConfigError, match=f"{name} is 0.5, but 0.25 in rope_parameters") as e:
        config(**fields).rope(default_partial_factor=0.5)
    assert "remove the other" in e.value.remedy


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type = 'linear'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rope_scaling.rope_type = 'llama3'",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rope_parameters.rope_type = 'yarn'",
        ),
        ({"rope_parameters": {"factor": 2.0}}, "rope_parameters.factor = 2.0"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling.factor = 4.0"),
    ],
)
def test_scaled_rope_is_refused_by_name(fields, named):
    with pytest.raises(ConfigError, match="is not implemented by this family") as e:
        config(**fields).rope(default_partial_factor=0.5)
    assert named in e.value.message
    assert "use a checkpoint without it" in e.value.remedy


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("field", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    ("table", "scaling"),
    [
        ({"type": "linear", "factor": 2}, LinearScaling(2.0)),
        (LLAMA3, Llama3Scaling(8.0, 1.0, 4.0, 8192.0)),
        ({"rope_type": "default"}, None),
    ],
)
def test_scaled_rope_where_the_family_has_it(field, table, scaling):
    rope = config(rope_theta=5e5, **{field: table}).rope(scaling=("linear", "llama3"))
    assert rope == Rope(5e5, 1.0, scaling)


def test_scaled_rope_that_the_family_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"rope_scaling.rope_type = 'llama3'.*'?linear") as e:
        config(rope_scaling=LLAMA3).rope(scaling=("linear",))
    assert "implemented: default, linear" in e.value.message


@pytest.mark.parametrize("missing", sorted(LLAMA3.keys() - {"rope_type"}))
def test_scaled_rope_needs_all_its_fields(missing):
    table = {k: v for k, v in LLAMA3.items() if k != missing}
    with pytest.raises(ConfigError, match=f"expected {missing} for rope_type 'llama3'"):
        config(rope_scaling=table).rope(scaling=("llama3",))


def test_scaled_rope_with_a_field_of_another_kind_is_refused():
    table = {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}
    with pytest.raises(ConfigError, match=r"rope_scaling\.beta_fast = 32"):
        config(rope_scaling=table).rope(scaling=("linear",))


def test_rope_of_each_type_of_layer():
    tables = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    thetas = [config(rope_parameters=tables).rope(layer_type=t).theta for t in tables]
    assert thetas == [1e6, 1e4]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_theta": 1e6}, "rope_theta = 1000000.0 is not implemented"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling = "),
        ({"rope_parameters": {"rope_theta": 1e6}}, "an object with one for sliding_attention"),
    ],
)
def test_one_rope_where_each_type_of_layer_has_its_own(fields, message):
    with pytest.raises(ConfigError, match=message):
        config(**fields).rope(layer_type="sliding_attention")


@pytest.mark.parametrize(
    ("kind", "scaling"),
    [
        ({"rope_type": "linear", "factor": 3.0}, LinearScaling(3.0)),
        (LLAMA3, Llama3Scaling(8.0, 1.0, 4.0, 8192.0)),
    ],
)
def test_scaled_frequencies_are_those_of_transformers(kind, scaling):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs = LlamaConfig(rope_parameters={**kind, "rope_theta": 5e5})
    expected, factor = ROPE_INIT_FUNCTIONS[kind["rope_type"]](theirs)
    plain = [5e5 ** (-i / 128) for i in range(0, 128, 2)]
    assert scaling.scaled(plain) == pytest.approx(expected.tolist(), rel=1e-6)
    assert factor == 1


# Windows


def test_windows_follow_layer_types():
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    c = config(layer_types=types, sliding_window=512)
    assert c.sliding_windows(3, lambda i: False) == [512, None, 512]
    assert c.leftovers() == {}


def test_windows_of_older_configs_follow_the_author():
    c = config(sliding_window=512)
    assert c.sliding_windows(4, lambda i: i >= 2) == [None, None, 512, 512]
    assert config().sliding_windows(2, lambda i: i == 0, 64) == [64, None]


def test_window_that_no_layer_has_is_inert():
    c = config(sliding_window=4096)
    assert c.sliding_windows(2, lambda i: False) == [None, None]
    assert c.leftovers() == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_types": ["full_attention"]}, "expected a list of 2 names"),
        ({"layer_types": "full_attention"}, "expected a list of 2 names"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention' is not"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding_window is missing"),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 0}, "a positive integer"),
    ],
)
def test_windows_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        config(**fields).sliding_windows(2, lambda i: False)


def test_optional_number_tells_null_from_absent():
    assert config().optional("cap", 50.0) == 50.0
    assert config(cap=None).optional("cap", 50.0) is None
    assert config(cap=30).optional("cap", 50.0) == 30.0
    with pytest.raises(ConfigError, match="cap is 0, expected a positive number"):
        config(cap=0).optional("cap")


@pytest.mark.parametrize("field", ["rope_parameters", "rope_scaling"])
def test_rope_that_is_no_object(field):
    with pytest.raises(ConfigError, match=f"{field} is 'linear', expected an object"):
        config(**{field: "linear"}).rope()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5, expected at most 1"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor is 0, expected a positive number"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0, expected a positive number"),
        ({"rope_theta": True}, "rope_theta is True, expected a positive number"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta is 'big', expected a positive"),
    ],
)
def test_rope_that_makes_no_sense(fields, message):
    with pytest.raises(ConfigError, match=message):
        config(**fields).rope(default_partial_factor=0.5)


# What became of every field


def test_leftovers_are_neither_read_nor_inert():
    c = config(hidden_size=8, odd=1, use_cache=True, mine=2)
    c.integer("hidden_size")
    c.inert("mine", "chooses a kernel")
    assert c.leftovers() == {"odd": 1}


def test_account_names_every_field_once():
    c = config(hidden_size=8, odd=1, use_cache=True, mine=2)
    c.integer("hidden_size")
    c.integer("absent", 5)
    c.inert("mine", "chooses a kernel")
    assert c.account() == {
        "read": ["hidden_size"],
        "inert": {"mine": "chooses a kernel", "use_cache": INERT["use_cache"]},
        "unknown": {"odd": 1},
    }


def test_inert_field_that_was_read_counts_as_read():
    c = config(use_cache=True)
    c.flag("use_cache")
    assert c.account() == {"read": ["use_cache"], "inert": {}, "unknown": {}}


def test_mapping_access_counts_as_reading():
    c = config(a=1, b=2, c=3)
    assert (c["a"], c.get("b"), c.get("absent")) == (1, 2, None)
    assert len(c) == 3
    assert c.leftovers() == {"c": 3}


def test_no_field_is_both_inert_and_mathematics():
    assert not INERT.keys() & CHANGES_MATHEMATICS.keys()


def test_config_does_not_change_with_its_source():
    fields = {"a": 1}
    c = Config(fields, "fake")
    fields["a"] = 2
    assert c["a"] == 1


FIELDS = {"hidden_size": 64, "vocab_size": 384, "bos_token_id": 1, "odd": 5}


def reading(fields=FIELDS):
    config = Config(fields, "config.json")
    config.integer("hidden_size")
    config.integer("num_heads", 4)
    config.inert("odd", "says nothing")
    return config.reading()


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({}, True),
        ({"bos_token_id": 7}, True),  # inert everywhere
        ({"odd": 6}, True),  # inert for this author
        ({"_name_or_path": "other/name"}, True),
        ({"hidden_size": 65}, False),
        ({"hidden_size": 64.0}, False),
        ({"num_heads": 4}, False),  # was read as absent
        ({"vocab_size": 385}, False),  # unread, but known to have been accepted as it was
        ({"new": None}, False),
    ],
)
def test_same_reading(changed, is_same):
    assert is_same_reading(reading(), {**FIELDS, **changed}) is is_same


def test_same_reading_of_an_author_who_looks_at_all():
    config = Config(FIELDS, "config.json")
    list(config)
    assert is_same_reading(config.reading(), FIELDS)
    assert not is_same_reading(config.reading(), {**FIELDS, "bos_token_id": 2})


def test_same_reading_survives_json():
    import json

    assert is_same_reading(json.loads(json.dumps(reading())), FIELDS)
