"""ZOO.toml: what it may say, and the cells that it stands for."""

from __future__ import annotations

import pytest

from edgezoo_core.batch import matrix
from edgezoo_core.batch.matrix import Cell
from edgezoo_core.errors import BatchError
from edgezoo_core.shapes import Shapes

FULL = """
schema = 1
recipes = ["dynamic_int8", "recipes/mixed.toml"]
kv_cache = [512, 1280]
prefill = [8, 64]
kv_layout = "default"
mask_as_input = false
verify = true

[[models]]
target = "gemma-2b"

[[models]]
target = "./mine"
recipes = ["fp16"]
kv_cache = [2048]
adapters = ["./adapter=0.5", "someone/adapter"]
card = "gemma-2b"
family = "gemma"
folder = "mine/tuned"
verify = false
bundle = false
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "ZOO.toml"
        path.write_text(text)
        return matrix.read(path)

    return read


def test_matrix_is_every_recipe_at_every_length(read, tmp_path):
    *cells, mine = read(FULL)
    mixed = str(tmp_path / "recipes" / "mixed.toml")
    shapes = [Shapes((8, 64), n, "default", mask_as_input=False) for n in (512, 1280)]
    assert cells == [
        Cell("gemma-2b", recipe, shape, is_verified=True)
        for shape in shapes
        for recipe in ("dynamic_int8", mixed)
    ]
    assert mine == Cell(
        str(tmp_path / "mine"),
        "fp16",
        Shapes((8, 64), 2048, "default", mask_as_input=False),
        family="gemma",
        card="gemma-2b",
        adapters=(str(tmp_path / "adapter=0.5"), "someone/adapter"),
        folder="mine/tuned",
        with_bundle=False,
    )


def test_what_is_not_named_is_left_to_the_card(read):
    assert read('schema = 1\n[[models]]\ntarget = "gemma-2b"\n') == (Cell("gemma-2b"),)


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("schema = 2\n", "schema 2, expected 1", "upgrade"),
        ("schema = 1\n", "models is missing", "add"),
        ("schema = 1\nmodels = []\n", "no models", "add"),
        ('schema = 1\nrecipe = ["fp16"]\n[[models]]\ntarget = "a"\n', "unknown key", "`recipes`"),
        ('schema = 1\n[[models]]\ntarget = "a"\nkv = [8]\n', "unknown key kv", "remove"),
        ('schema = 1\n[[models]]\nmodel = "a"\n', "target is missing", "add"),
        ('schema = 1\nrecipes = "fp16"\n[[models]]\ntarget = "a"\n', "expected a list", "correct"),
        ('schema = 1\nkv_cache = [0]\n[[models]]\ntarget = "a"\n', "positive numbers", "correct"),
        ('schema = 1\nprefill = [true]\n[[models]]\ntarget = "a"\n', "positive", "correct"),
        ('schema = 1\nkv_layout = "x"\n[[models]]\ntarget = "a"\n', "kv_layout 'x'", "transposed"),
        ('schema = 1\n[[models]]\ntarget = "a"\nfolder = "../b"\n', "no path within", "folder"),
        ('schema = 1\n[[models]]\ntarget = "a"\nfolder = "/b"\n', "no path within", "folder"),
        ('schema = 1\n[[models]]\ntarget = "a"\n[[models]]\ntarget = "a"\n', "twice", "remove"),
        ('schema = 1\nkv_cache = [8, 8]\n[[models]]\ntarget = "a"\n', "twice", "remove"),
        ("schema = \n", "not TOML", "correct"),
    ],
)
def test_mistakes_are_told_with_what_to_do(read, text, message, remedy):
    with pytest.raises(BatchError, match=message) as e:
        read(text)
    assert remedy in e.value.remedy


def test_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(BatchError, match="No such file"):
        matrix.read(tmp_path / "ZOO.toml")
