"""What the order of the stages decides before any conversion."""

from __future__ import annotations

import json
import logging

import pytest

from edgezoo_core import recipe, sources, zoo
from edgezoo_core.errors import ArtifactError, ConversionError, TargetError
from edgezoo_core.shapes import Shapes, SignatureOptions, complete

SMALL = Shapes(prefill_lengths=(4,), kv_cache_length=32)


@pytest.fixture(scope="module")
def folder(save_model):
    return save_model("gemma", head_dim=32).folder


def choose(folder, **shapes):
    source = sources.obtain(str(folder))
    return complete(
        Shapes(**shapes),
        source.job(recipe.resolve("none"), Shapes()).base,
        source.author().context_length,
    )


def test_default_shapes_keep_to_the_context(folder):
    assert choose(folder) == SignatureOptions((8, 128), 256)  # the model's context is 256


def test_default_prefill_lengths_keep_to_the_cache(folder):
    assert choose(folder, kv_cache_length=64).prefill_lengths == (8,)


def test_named_shapes_are_taken(folder):
    shapes = choose(
        folder,
        prefill_lengths=(32, 4),
        kv_cache_length=99,
        kv_layout="default",
        mask_as_input=False,
    )
    assert shapes == SignatureOptions((4, 32), 99, "default", mask_as_input=False)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"kv_cache_length": 257}, "longer than the model's context of 256 tokens"),
        ({"kv_cache_length": 64, "prefill_lengths": (64,)}, "cannot hold a prefill of 64 tokens"),
        ({"kv_layout": "sideways"}, "unknown KV layout 'sideways'"),
    ],
)
def test_impossible_shapes_are_refused_before_work(folder, tmp_path, shapes, message):
    with pytest.raises(ConversionError, match=message) as e:
        zoo.convert(str(folder), shapes=Shapes(**shapes), output=tmp_path)
    assert e.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_growth_of_a_tied_model_is_told(folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "edgezoo_core"):
        zoo.convert(str(folder), recipe="dynamic_int8_linear", shapes=SMALL, output=tmp_path)
    # 384 rows of 128 weights and a scale.
    assert f"{384 * (128 + 4) / 1e6:.1f} MB more" in caplog.text


def test_lengths_that_litert_lm_changes_are_told(folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "edgezoo_core"):
        zoo.convert(str(folder), recipe="none", shapes=Shapes((4, 13), 37), output=tmp_path)
    told = [record.getMessage().split(";")[0] for record in caplog.records]
    assert told == [
        "--prefill 13 is a prime number, of which LiteRT-LM makes 8",
        "--kv-cache 37 is a prime number, of which LiteRT-LM makes 32",
    ]


def test_folder_that_cannot_be_written_is_told(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written"):
        zoo.convert(str(folder), output=tmp_path / "file" / "below")


def test_folder_without_config_takes_the_cards(folder, tmp_path):
    for file in folder.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).hardlink_to(file)
    with pytest.raises(TargetError, match=r"no config\.json") as e:
        sources.obtain(str(tmp_path))
    assert "--card" in e.value.remedy
    source = sources.obtain(str(tmp_path), card="gemma-2b")
    assert source.config["num_hidden_layers"] == 18
    assert source.model.card_id == "gemma-2b"


def test_card_of_another_architecture_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["GemmaForCausalLM"]
    with pytest.raises(TargetError, match="but phi-2 is a PhiForCausalLM"):
        sources.obtain(str(folder), card="phi-2")
