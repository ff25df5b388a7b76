from __future__ import annotations

import pytest

from edgezoo_core import recipe
from edgezoo_core.errors import RecipeError
from edgezoo_core.recipe import FORMATS, GROUPS, RECIPES
from edgezoo_core.types import PARTS, QuantPlan, WeightRule

INT8, INT4, FP16 = FORMATS["dynamic_int8"], FORMATS["dynamic_int4"], FORMATS["fp16"]


@pytest.fixture
def read(tmp_path):
    def read(text: str, name: str = "mine.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return recipe.read(path)

    return read


# Names


def test_every_recipe_resolves_to_its_own_name():
    assert recipe.DEFAULT in RECIPES
    assert [recipe.resolve(name).name for name in RECIPES] == list(RECIPES)


def test_recipe_named_like_a_format_stores_everything_in_it():
    assert recipe.resolve("none").default is None
    found = recipe.resolve("dynamic_int4_block32")
    assert (found.default.bits, found.default.block_size) == (4, 32)
    assert (found.parts, found.layers) == ({}, {})


def test_linear_recipe_keeps_the_embedding():
    found = recipe.resolve("dynamic_int8_linear")
    assert (found.default, found.parts) == (INT8, {"embedding": None})


def test_formats_go_by_their_names():
    assert all(f is None or f.name == name for name, f in FORMATS.items())
    assert FORMATS["none"] is None


def test_unknown_recipe():
    with pytest.raises(RecipeError, match="no recipe is called 'dynamic_in8'") as e:
        recipe.resolve("dynamic_in8")
    assert e.value.remedy == "did you mean dynamic_int8?"
    with pytest.raises(RecipeError, match="there are none, fp16, ") as e:
        recipe.resolve("qqqq")
    assert e.value.remedy == "choose one, or name a .toml file"


def test_name_that_ends_in_toml_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text("default = 'fp16'")
    assert recipe.resolve(str(tmp_path / "mine.toml")).default == FP16
    monkeypatch.setenv("HOME", str(tmp_path))
    assert recipe.resolve("~/mine.toml").name == "mine"


# Files


def test_empty_file_keeps_float32(read):
    found = read("")
    assert (found.name, found.default, found.parts, found.layers) == ("mine", None, {}, {})


def test_name_and_parts(read):
    found = read("name = 'small'\ndefault = 'dynamic_int8'\nlm_head = 'fp16'\nqkv = 'none'")
    assert (found.name, found.default) == ("small", INT8)
    assert found.parts == {"lm_head": FP16, "qkv": None}


def test_groups_stand_for_their_parts(read):
    found = read("attention = 'fp16'\nfeedforward = 'dynamic_int4'")
    assert found.parts == {"qkv": FP16, "o": FP16, "gate": INT4, "up": INT4, "down": INT4}
    assert all(part in PARTS for parts in GROUPS.values() for part in parts)


@pytest.mark.parametrize(
    "text", ["attention = 'fp16'\no = 'dynamic_int8'", "o = 'dynamic_int8'\nattention = 'fp16'"]
)
def test_part_beats_its_group_in_either_order(read, text):
    assert read(text).parts == {"qkv": FP16, "o": INT8}


def test_layers_by_index_from_both_ends_and_by_range(read):
    found = read(
        "[layers.0]\nqkv = 'fp16'\n"
        "[layers.-1]\nattention = 'none'\n"
        "[layers.'2-4']\ndown = 'dynamic_int4'\n"
    )
    assert found.layers == {
        0: {"qkv": FP16},
        -1: {"qkv": None, "o": None},
        2: {"down": INT4},
        3: {"down": INT4},
        4: {"down": INT4},
    }


def test_layer_that_is_named_twice_adds_up(read):
    found = read("[layers.'0-1']\nqkv = 'fp16'\n[layers.1]\no = 'dynamic_int8'\n")
    assert found.layers == {0: {"qkv": FP16}, 1: {"qkv": FP16, "o": INT8}}


@pytest.mark.parametrize("key", ["first", "3-1", "-3--1", "1.5", "1-", ""])
def test_layer_that_is_none(read, key):
    with pytest.raises(RecipeError, match=f"layers.{key} is no layer") as e:
        read(f"[layers.'{key}']\nqkv = 'fp16'\n")
    assert e.value.remedy == 'write [layers.0], [layers.-1] or [layers."2-5"]'


@pytest.mark.parametrize("text", ["layers = 3", "layers = ['fp16']", "layers.0 = 'fp16'"])
def test_layers_must_be_tables(read, text):
    with pytest.raises(RecipeError, match="layers must be tables") as e:
        read(text)
    assert e.value.remedy == "write [layers.0]"


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("atention = 'fp16'", "mine.toml: unknown key atention", "did you mean attention?"),
        ("defualt = 'fp16'", "mine.toml: unknown key defualt", "did you mean default?"),
        ("embeding = 'fp16'", "mine.toml: unknown key embeding", "did you mean embedding?"),
        ("zzz = 'fp16'", "mine.toml: unknown key zzz", f"parts are {', '.join(PARTS)}"),
        ("[layers.0]\nqvk = 'fp16'", "layers.0: unknown key qvk", "did you mean qkv?"),
        ("[layers.0]\ndefault = 'fp16'", "layers.0: unknown key default", "parts are embedding"),
    ],
)
def test_unknown_key(read, text, message, remedy):
    with pytest.raises(RecipeError, match=message) as e:
        read(text)
    assert e.value.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("qkv = 'dynamic_in8'", "mine.toml: qkv: 'dynamic_in8' is no format", "did you mean dyn"),
        ("qkv = 'qqqq'", r"\(there are none, fp16, ", "choose one of them"),
        ("qkv = 8", "mine.toml: qkv: 8 is no format", "choose one of them"),
        ("qkv = { bits = 8 }", "is no format", "choose one of them"),
        ("default = 'qqqq'", "mine.toml: default: 'qqqq' is no format", "choose one of them"),
        ("[layers.2]\nup = 'qqqq'", "layers.2: up: 'qqqq' is no format", "choose one of them"),
    ],
)
def test_unknown_format(read, text, message, remedy):
    with pytest.raises(RecipeError, match=message) as e:
        read(text)
    assert e.value.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dynamic_int8_block32", "ai-edge-quantizer refuses int8 by blocks"),
        ("weight_only_int8_block64", "ai-edge-quantizer refuses int8 by blocks"),
        ("weight_only_int4_block32", "ai-edge-quantizer refuses weight-only int4 by blocks"),
        ("static_int8", "static activations need calibration"),
    ],
)
def test_format_that_is_refused_says_why(read, name, reason):
    with pytest.raises(RecipeError, match=f"qkv: {name} is refused: {reason}") as e:
        read(f"qkv = '{name}'")
    assert e.value.remedy == "choose another"


@pytest.mark.parametrize("name", RECIPES)
def test_file_must_not_be_called_like_a_recipe(read, name):
    with pytest.raises(RecipeError, match=f"{name} is the name of a built-in recipe") as e:
        read("default = 'fp16'", name=f"{name}.toml")
    assert e.value.remedy == "set `name`"
    with pytest.raises(RecipeError, match="is the name of a built-in recipe"):
        read(f"name = '{name}'")
    assert read("name = 'mine'", name=f"{name}.toml").name == "mine"


@pytest.mark.parametrize("name", ["'a b'", "'a/b'", "''", "'.hidden'", "3"])
def test_name_that_does_not_fit_into_a_file_name(read, name):
    with pytest.raises(RecipeError, match="does not fit into a file name") as e:
        read(f"name = {name}")
    assert e.value.remedy == "rename it"


def test_file_that_is_missing(tmp_path):
    with pytest.raises(RecipeError, match=r"absent.toml: No such file") as e:
        recipe.resolve(str(tmp_path / "absent.toml"))
    assert e.value.remedy == "check the path"


@pytest.mark.parametrize("content", [b"default = = 1", b"\xff\xfe"])
def test_file_that_is_not_toml(tmp_path, content):
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine.toml: not TOML") as e:
        recipe.read(tmp_path / "mine.toml")
    assert e.value.remedy == "correct the file"


# Parameters and sizes


@pytest.mark.parametrize(
    ("parameter", "is_gated", "expected"),
    [
        ("tok_embedding.weight", True, ("embedding", None)),
        ("lm_head.weight", True, ("lm_head", None)),
        ("transformer_blocks.0.atten_func.qkv_projection.weight", True, ("qkv", 0)),
        ("transformer_blocks.11.atten_func.output_projection.weight", True, ("o", 11)),
        ("transformer_blocks.2.ff.w1.weight", True, ("gate", 2)),
        ("transformer_blocks.2.ff.w1.weight", False, ("up", 2)),
        ("transformer_blocks.2.ff.w2.weight", True, ("down", 2)),
        ("transformer_blocks.2.ff.w3.weight", True, ("up", 2)),
        (
            "transformer_blocks.2.router.weight",
            True,
            ("transformer_blocks.2.router.weight", 2),
        ),
        ("pos.weight", True, ("pos.weight", None)),
    ],
)
def test_part_of_a_parameter(parameter, is_gated, expected):
    assert recipe.part_of(parameter, is_gated=is_gated) == expected


def tied(embedding, lm_head) -> QuantPlan:
    shape = (100, 64)
    return QuantPlan(
        "mine",
        (
            WeightRule("tok.weight", "EMBEDDING_LOOKUP", "embedding", None, shape, embedding),
            WeightRule("tok.weight", "FULLY_CONNECTED", "lm_head", None, shape, lm_head),
            WeightRule("other.weight", "FULLY_CONNECTED", "qkv", 0, shape, INT8),
        ),
    )


def test_tied_weight_of_one_format_costs_nothing_more():
    assert recipe.growth_bytes(tied(INT8, INT8)) == 0
    assert recipe.growth_bytes(tied(None, None)) == 0


def test_tied_weight_of_two_formats_costs_the_smaller_one_more():
    int8_bytes = 100 * 64 + 100 * 4
    assert recipe.growth_bytes(tied(None, INT8)) == int8_bytes
    assert recipe.growth_bytes(tied(INT8, FP16)) == int8_bytes
