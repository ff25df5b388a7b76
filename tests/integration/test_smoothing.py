"""What recipes fold: exact in every family, chosen by calibration, recorded, made again without."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgezoo_core import (
    artifact,
    certificate,
    folds,
    recipe,
    recipe_writing,
    reproduction,
    sources,
    zoo,
)
from edgezoo_core.calibrating import choice
from edgezoo_core.compiler import workers
from edgezoo_core.conversion import rescaling
from edgezoo_core.errors import CalibrationError, PluginError, RecipeError
from edgezoo_core.folds import Fold
from edgezoo_core.model import materialize
from edgezoo_core.parity import run, sample_tokens
from edgezoo_core.runtime import Session
from edgezoo_core.shapes import Shapes
from edgezoo_core.types import WeightFormat

SHAPES = Shapes(prefill_lengths=(4, 16), kv_cache_length=64)
#: Grouped heads, one key for all heads, biases, norms around one, a norm that two read, a head
#: that is the embedding and one that is not.
NAMES = [
    "llama-grouped",
    "llama-multi-query-tied",
    "llama-multi-head-biased-odd",
    "gemma-multi-query",
    "phi-grouped-odd",
    "phi-multi-query-tied",
]
INT8 = recipe.FORMATS["dynamic_int8"]


@pytest.fixture(params=NAMES)
def source(request, save_case):
    return sources.obtain(str(save_case(request.param).folder))


@pytest.fixture
def llama(save_case):
    return sources.obtain(str(save_case("llama-grouped").folder))


def some_folds(source, seed=0):
    """Exponents from -3 to 3 for every place of a model."""
    generator = np.random.default_rng(seed)
    return {
        place.name: tuple(int(k) for k in generator.integers(-3, 4, place.channels))
        for place in folds.places(source.author().module)
    }


def convert(source, chosen, output, engine="streaming"):
    made = zoo.convert_source(source, recipe=chosen, shapes=SHAPES, output=output, engine=engine)
    return made.artifact


def logits(path):
    with Session(path) as session:
        return np.stack([session.feed([5, 6, 7, 8, 9]), *(session.feed([t]) for t in (3, 1, 4))])


def test_module_computes_the_same_to_the_bit(source):
    authored = source.author()
    plain, folded = (materialize(a) for a in (authored, source.author()))
    shapes = {n: tuple(p.shape) for n, p in plain.named_parameters()}
    chosen = some_folds(source)
    rescaling.apply(rescaling.build(folds.places(folded), chosen, shapes, "it"), folded)
    before = dict(plain.named_parameters())
    changed = {n for n, p in folded.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {t.parameter for place in folds.places(folded) for t in place.targets}
    tokens = sample_tokens(plain.config.vocab_size)
    assert torch.equal(run(folded, tokens), run(plain, tokens))


def test_float_file_computes_the_same_to_the_bit(source, tmp_path):
    none = recipe.resolve("none")
    plain = convert(source, none, tmp_path / "plain.tflite")
    folded = convert(source, replace(none, folds=some_folds(source)), tmp_path / "folded.tflite")
    assert folded.manifest["artifact"]["sha256"] != plain.manifest["artifact"]["sha256"]
    np.testing.assert_array_equal(logits(folded.path), logits(plain.path))


def test_both_engines_fold_alike(source, tmp_path):
    chosen = replace(recipe.resolve("dynamic_int8"), folds=some_folds(source))
    streamed, oracle = (
        convert(source, chosen, tmp_path / f"{engine}.tflite", engine)
        for engine in ("streaming", "litert")
    )
    np.testing.assert_array_equal(logits(streamed.path), logits(oracle.path))


def test_every_place_of_a_family_is_used(source):
    found = [place.name.rpartition(".")[2] for place in folds.places(source.author().module)]
    layers = source.config["num_hidden_layers"]
    kinds = {
        "llama": ["pre_attention_norm", "value", "post_attention_norm", "up"],
        "gemma": ["pre_attention_norm", "value", "post_attention_norm", "up"],
        "phi": ["pre_attention_norm", "value"],
    }[source.config["model_type"]]
    is_tied = source.config.get("tie_word_embeddings", False)
    expected = [kind for kind in kinds for _ in range(layers)]
    assert found == [*expected, *([] if is_tied else ["final_norm"])]


@pytest.mark.parametrize(
    ("name", "fold", "reason"),
    [
        ("phi-grouped-odd", Fold("pre_attention_norm", ("qkv",)), "what reads it is qkv, up"),
        ("phi-grouped-odd", Fold("up", ("down",)), "an activation stands between them"),
        (
            "phi-grouped-odd",
            Fold("post_attention_norm", ("up",)),
            "the norm is not what the feed-forward reads",
        ),
        ("llama-grouped", Fold("post_attention_norm", ("up",)), "what reads it is gate, up"),
        ("llama-grouped", Fold("pre_feedforward_norm", ("gate", "up")), "there is no such norm"),
        ("llama-grouped", Fold("value", ("down",)), "what reads it is o"),
        ("gemma-multi-query", Fold("final_norm", ("lm_head",)), "the head is the embedding"),
    ],
)
def test_what_is_not_exact_is_refused(save_case, name, fold, reason):
    module = sources.obtain(str(save_case(name).folder)).author().module
    module.folds = (fold,)
    with pytest.raises(PluginError, match=reason):
        folds.places(module)


def test_producer_declared_twice_is_refused(llama):
    module = llama.author().module
    module.folds = (Fold("up", ("down",)), Fold("up", ("down",)))
    with pytest.raises(PluginError, match="declared twice"):
        folds.places(module)


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"layers.7.up": (0,) * 256}, "folds layers.7.up, which"),
        ({"layers.0.up": (0, 1)}, "folds 2 channels of layers.0.up, which has 256"),
    ],
)
def test_folds_of_another_model_are_refused(llama, tmp_path, chosen, reason):
    asked = replace(recipe.resolve("dynamic_int8"), folds=chosen)
    with pytest.raises(RecipeError, match=reason):
        convert(llama, asked, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_outlying_channel_is_scaled_down():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 64, generator=generator)
    inputs[:, 5] *= 200
    weight = torch.randn(96, 64, generator=generator)
    chosen = choice.exponents(inputs, [choice.Reader(weight, INT8)])
    assert chosen[5] >= max(k for i, k in enumerate(chosen) if i != 5) + 2
    powers = torch.tensor([2.0**k for k in chosen])
    before, after = (
        torch.dist(quantized(inputs / p) @ rounded(weight * p).T, inputs @ weight.T)
        for p in (torch.ones(64), powers)
    )
    assert after < before / 3


def quantized(x):
    """torch's own rounding to 8 bits, token by token."""
    rows = []
    for row in x:
        low, high = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
        scale = (high - low) / 255
        zero = round(-low / scale)
        rows.append(torch.fake_quantize_per_tensor_affine(row, scale, zero, 0, 255))
    return torch.stack(rows)


def rounded(weight):
    scales = weight.abs().amax(1) / 127
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -128, 127)


@pytest.mark.parametrize("fmt", [None, WeightFormat("fp16", 16, True, False)])
def test_nothing_is_folded_where_nothing_is_gained(fmt):
    inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    chosen = choice.exponents(inputs, [choice.Reader(torch.ones(8, 32), fmt)])
    assert not any(chosen)


def test_dead_channels_and_dead_layers_are_left_alone():
    inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    inputs[:, 3] = 0
    inputs[:, 4] *= 500
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    assert choice.exponents(inputs, [choice.Reader(weight, INT8)])[3] == 0
    assert not any(choice.exponents(inputs * 0, [choice.Reader(weight, INT8)]))
    assert not any(choice.exponents(inputs, [choice.Reader(weight * 0, INT8)]))


def test_calibrated_file_is_certified_and_made_again_without_calibration(
    llama, tmp_path, monkeypatch
):
    folder = llama.checkpoint.folder
    made = zoo.convert(
        str(folder), recipe="int8", shapes=SHAPES, output=tmp_path / "m.tflite", with_bundle=False
    ).artifact
    recorded = made.manifest["recipe"]
    assert recorded["name"] == "int8"
    assert set(recorded["weights"].values()) == {"dynamic_int8"}
    known = {p.name: p.channels for p in folds.places(llama.author().module)}
    assert recorded["folds"]
    assert all(known[place] == len(text) for place, text in recorded["folds"].items())

    asked = []
    original = workers.run
    monkeypatch.setattr(
        workers, "run", lambda stage, *a: (asked.append(stage), original(stage, *a))[1]
    )
    report = certificate.verify(made.path)
    assert report.passes, report.record()
    assert reproduction.reproduce(artifact.manifest_path(made.path)).passes
    text = recipe_writing.recipe_file(made.manifest)
    assert text is not None
    (tmp_path / text[0]).write_text(text[1])
    again = zoo.convert(
        str(folder),
        recipe=str(tmp_path / text[0]),
        shapes=SHAPES,
        output=tmp_path / "again.tflite",
        with_bundle=False,
    ).artifact
    assert again.manifest["artifact"]["sha256"] == made.manifest["artifact"]["sha256"]
    assert "smooth" not in asked

    zoo.convert(
        str(folder), recipe="int8", shapes=SHAPES, output=tmp_path / "b.tflite", with_bundle=False
    )
    assert "smooth" not in asked  # what was chosen is kept


def test_damaged_row_of_a_folded_matrix_is_found(llama, tmp_path):
    chosen = replace(recipe.resolve("dynamic_int8"), folds=some_folds(llama))
    made = convert(llama, chosen, tmp_path / "m.tflite")
    other = json.loads(artifact.manifest_path(made.path).read_text())
    place = "layers.0.up"
    turned = [-k for k in folds.parse(other["recipe"]["folds"][place])]
    other["recipe"]["folds"][place] = folds.spell(turned)
    artifact.manifest_path(made.path).write_text(json.dumps(other))
    report = certificate.verify(made.path, with_structure=False)
    assert not report.weights.passes


def test_text_is_named_by_the_user(llama, tmp_path):
    folder = str(llama.checkpoint.folder)
    arguments = {"recipe": "int8", "shapes": SHAPES, "output": tmp_path / "m.tflite"}
    with pytest.raises(CalibrationError, match="cannot be read"):
        zoo.convert(folder, **arguments, calibration=tmp_path / "none.txt")
    with pytest.raises(RecipeError, match="reads no text"):
        zoo.convert(
            folder, **{**arguments, "recipe": "dynamic_int8"}, calibration=tmp_path / "none.txt"
        )
    assert not list(tmp_path.iterdir())
