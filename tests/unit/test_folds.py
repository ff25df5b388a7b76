"""Exponents as text, and what recipe files say of them."""

from __future__ import annotations

import pytest

from edgezoo_core import folds, recipe
from edgezoo_core.compiler.job import recipe_from_json, recipe_to_json
from edgezoo_core.errors import RecipeError
from edgezoo_core.folds import Place, Target


def test_exponents_are_letters():
    assert folds.spell([0, 1, -1, 12, -12]) == "mnlya"
    everything = range(-folds.LARGEST, folds.LARGEST + 1)
    assert folds.parse(folds.spell(everything)) == tuple(everything)


@pytest.mark.parametrize("text", ["", "z", "M", "m m", "é", "mm\n"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="is no row of letters"):
        folds.parse(text)


def test_places_pass_between_processes():
    places = (
        Place("layers.0.value", 4, (Target("a.weight", 0, 8), Target("b.weight", 1, 0, 2, 3))),
        Place("final_norm", 2, (Target("n.weight", 0, is_centered=True),)),
    )
    assert folds.from_json(folds.to_json(places)) == places


def test_file_says_what_is_folded_or_asks_for_calibration(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('default = "dynamic_int8"\n[folds]\n"layers.0.up" = "mno"\n')
    read = recipe.resolve(str(path))
    assert (read.is_smoothed, read.folds) == (False, {"layers.0.up": (0, 1, 2)})
    assert recipe_from_json(recipe_to_json(read)) == read
    path.write_text('default = "dynamic_int4_block32"\nsmooth = true\n')
    read = recipe.resolve(str(path))
    assert read.is_smoothed
    assert recipe_from_json(recipe_to_json(read)) == read


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("smooth = 1", "smooth must be true or false"),
        ('smooth = true\n[folds]\nfinal_norm = "m"', "chooses what \\[folds\\] says"),
        ('folds = "m"', "folds must be a table"),
        ("[folds]\nfinal_norm = 3", "folds.final_norm"),
        ('[folds]\nfinal_norm = "mZ"', "is no row of letters"),
    ],
)
def test_malformed_folds_are_refused(tmp_path, text, reason):
    path = tmp_path / "r.toml"
    path.write_text(f'default = "none"\n{text}\n')
    with pytest.raises(RecipeError, match=reason):
        recipe.resolve(str(path))


def test_int8_calibrates():
    assert recipe.resolve("int8").is_smoothed
    assert not recipe.resolve("dynamic_int8").is_smoothed
