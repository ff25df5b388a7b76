"""Weights whose errors make up for each other: against ai-edge-quantizer's, and end to end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from ai_edge_quantizer import qtyping
from ai_edge_quantizer.algorithms.uniform_quantize import gptq, uniform_quantize_tensor
from safetensors.torch import load_file, save_file

from edgezoo_core import artifact, certificate, recipe, recipe_writing, reproduction, sources, zoo
from edgezoo_core.calibrating import rounding
from edgezoo_core.compiler import workers
from edgezoo_core.conversion import codes, rows
from edgezoo_core.errors import CalibrationError, CheckpointError, RecipeError
from edgezoo_core.shapes import Shapes

SHAPES = Shapes(prefill_lengths=(4, 16), kv_cache_length=64)
INT8, INT4, BLOCKS = (
    recipe.FORMATS[name] for name in ("dynamic_int8", "dynamic_int4", "dynamic_int4_block32")
)
#: Grouped heads, one key for all heads and a tied head, norms around one, a norm that two read.
NAMES = ["llama-grouped", "llama-multi-query-tied", "gemma-multi-query", "phi-multi-head"]


@pytest.fixture
def llama(save_case):
    return str(save_case("llama-grouped").folder)


def convert(folder, output, **options):
    options = {"recipe": "int4", "shapes": SHAPES, "with_bundle": False, **options}
    return zoo.convert(str(folder), output=output, **options).artifact


def sha256(made):
    return made.manifest["artifact"]["sha256"]


def text(path, word):
    """A text of a thousand tokens that calibration takes as it is."""
    path.write_text("\n\n".join(f"{word} {i} says something of its own." for i in range(300)))
    return path


def layer(columns=128, count=96, tokens=400):
    """A weight, and inputs that depend on each other, as those of a layer do."""
    generator = torch.Generator().manual_seed(3)
    mixed = torch.randn(tokens, columns // 4, generator=generator)
    inputs = mixed @ torch.randn(columns // 4, columns, generator=generator)
    inputs += 0.3 * torch.randn(tokens, columns, generator=generator)
    inputs[:, :5] *= 6
    return torch.randn(count, columns, generator=generator), inputs


def lost(found, weight, inputs):
    return float(torch.dist(inputs @ found.T, inputs @ weight.T))


def nearest(weight, fmt):
    plain = [rounding.looked_up(weight.shape[1])]
    return rounding.rounded(weight, plain, fmt).dequantized()


def of_quantizer(weight, inputs, fmt):
    """ai-edge-quantizer's GPTQ, with the scales that it takes of its own."""
    granularity = (
        qtyping.QuantGranularity.BLOCKWISE_32
        if fmt.block_size
        else qtyping.QuantGranularity.CHANNELWISE
    )
    config = qtyping.TensorQuantizationConfig(fmt.bits, granularity=granularity)
    blocks = weight.numpy().reshape(len(weight), -1, fmt.block_size or weight.shape[1])
    zero_point, scale = uniform_quantize_tensor.tensor_zp_scale_from_min_max(
        blocks.min(2), blocks.max(2), fmt.bits, True, granularity, None
    )
    asked = qtyping.UniformQuantParams(
        fmt.bits, 0, scale, zero_point, block_size=fmt.block_size or 0
    )
    moments = {"hessian": (2.0 / len(inputs)) * (inputs.T @ inputs).numpy()}
    found = gptq._apply_gptq(weight.numpy(), asked, moments, config)
    steps = np.repeat(scale, weight.shape[1] // scale.shape[1], 1)
    return torch.from_numpy(found.quantized_data * steps)


@pytest.mark.parametrize("fmt", [INT8, INT4, BLOCKS], ids=lambda fmt: fmt.name)
def test_no_more_is_lost_than_by_ai_edge_quantizer(fmt):
    weight, inputs = layer()
    uses = [rounding.use(inputs.T @ inputs)]
    ours = lost(rounding.rounded(weight, uses, fmt).dequantized(), weight, inputs)
    theirs = lost(of_quantizer(weight, inputs, fmt), weight, inputs)
    plain = lost(nearest(weight, fmt), weight, inputs)
    assert theirs < plain
    assert ours <= theirs
    assert ours < 0.7 * plain


def test_parts_make_up_for_themselves():
    weight, inputs = layer()
    spans = list(rounding.spans(128, BLOCKS, widest=50))
    assert spans == [(0, 64), (64, 128)]
    assert list(rounding.spans(128, INT8, widest=50)) == [(0, 43), (43, 86), (86, 128)]
    uses = [rounding.use(inputs[:, a:b].T @ inputs[:, a:b]) for a, b in spans]
    found = rounding.rounded(weight, uses, BLOCKS).dequantized()
    assert lost(found, weight, inputs) < 0.85 * lost(nearest(weight, BLOCKS), weight, inputs)


def test_what_nothing_reaches_is_rounded_to_the_nearest():
    weight, _ = layer()
    dead = rounding.rounded(weight, [rounding.use(torch.zeros(128, 128))], INT8)
    assert torch.equal(dead.dequantized(), nearest(weight, INT8))


def test_table_that_is_looked_up_is_rounded_to_the_nearest():
    weight, _ = layer()
    found = rounding.rounded(weight, [rounding.looked_up(128)], INT8)
    steps = found.scales.expand(-1, 128)
    near = (weight / steps).round().clamp(-128, 127)
    assert torch.equal(found.codes.float(), near)


@pytest.mark.parametrize("fmt", [INT8, INT4, BLOCKS], ids=lambda fmt: fmt.name)
def test_codes_come_back_as_they_were_kept(fmt, tmp_path):
    weight, inputs = layer()
    found = rounding.rounded(weight, [rounding.use(inputs.T @ inputs)], fmt)
    codes.save(
        tmp_path, "w.weight", fmt, rows.stored(found.codes.numpy(), found.scales.numpy(), fmt)
    )
    kept = codes.Codes(tmp_path.iterdir())
    assert kept.rows("other.weight", fmt, 0, 1) is None
    for first, count in ((0, 96), (7, 5)):
        back = kept.rows("w.weight", fmt, first, count)
        expected = found.dequantized()[first : first + count].numpy()
        np.testing.assert_array_equal(rows.decode(back, fmt), expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_converted_and_certified(name, save_case, tmp_path):
    folder = save_case(name).folder
    made = convert(folder, tmp_path / "m.tflite")
    plain = convert(folder, tmp_path / "plain.tflite", recipe="dynamic_int4_block32")
    assert made.manifest["artifact"]["size_bytes"] == plain.manifest["artifact"]["size_bytes"]
    assert made.manifest["recipe"]["weights"] == plain.manifest["recipe"]["weights"]
    assert len(made.manifest["recipe"]["compensated"]["text_sha256"]) == 64
    report = certificate.verify(made.path)
    assert report.structure.passes, report.record()
    assert report.weights.passes, report.record()
    assert report.weights.is_compensated
    # Random weights are not forgiving; of the two files, it is the better one.
    other = certificate.verify(plain.path, with_structure=False)
    assert report.outputs.loss.mean_kl < other.outputs.loss.mean_kl


def test_rows_that_changed_places_are_found(llama, tmp_path):
    made = convert(llama, tmp_path / "m.tflite")
    assert certificate.verify(made.path, with_structure=False).weights.passes
    damaged = shutil.copytree(llama, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][[3, 4]] = weights[name][[4, 3]]
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    # The manifest says that the file was made from these.
    told = json.loads(artifact.manifest_path(made.path).read_text())
    other = sources.obtain(str(damaged))
    told["checkpoint"]["folder"] = str(damaged)
    told["checkpoint"]["files"] = [
        {"name": f.name, "size_bytes": f.size_bytes, "sha256": f.sha256}
        for f in other.checkpoint.hash_files()
    ]
    artifact.manifest_path(made.path).write_text(json.dumps(told))
    report = certificate.verify(made.path, with_structure=False).weights
    assert not report.passes
    assert len(report.bad) == 1
    assert report.bad[0].startswith("transformer_blocks.1.ff.w2.weight row")
    assert report.bad[0].endswith("steps, root mean square")


def test_calibration_is_kept_and_made_again(llama, tmp_path, monkeypatch):
    made = convert(llama, tmp_path / "m.tflite")
    asked = []
    original = workers.run
    monkeypatch.setattr(
        workers, "run", lambda stage, *a: (asked.append(stage), original(stage, *a))[1]
    )
    again = convert(llama, tmp_path / "again.tflite")
    assert sha256(again) == sha256(made)
    assert "compensate" not in asked
    apart = convert(llama, tmp_path / "apart.tflite", use_cache=False)
    assert sha256(apart) == sha256(made)
    assert "compensate" in asked
    assert reproduction.reproduce(artifact.manifest_path(made.path)).passes


def test_recipe_file_makes_it_again(llama, tmp_path):
    made = convert(llama, tmp_path / "m.tflite")
    name, told = recipe_writing.recipe_file(made.manifest)
    assert "compensate = true" in told
    (tmp_path / name).write_text(told)
    again = convert(llama, tmp_path / "again.tflite", recipe=str(tmp_path / name))
    assert sha256(again) == sha256(made)


def test_text_of_the_user_is_asked_for_again(llama, tmp_path):
    own = text(tmp_path / "own.txt", "Somebody")
    made = convert(llama, tmp_path / "m.tflite", calibration=own)
    assert sha256(made) != sha256(convert(llama, tmp_path / "carried.tflite"))
    manifest = artifact.manifest_path(made.path)
    with pytest.raises(CalibrationError, match="the carried text has") as caught:
        reproduction.reproduce(manifest)
    assert "--calibration FILE" in caught.value.remedy
    with pytest.raises(CalibrationError, match="calibrated on a text with sha256"):
        reproduction.reproduce(manifest, calibration=text(tmp_path / "other.txt", "Nobody"))
    assert reproduction.reproduce(manifest, calibration=own).passes


def test_litert_torchs_path_refuses(llama, tmp_path):
    with pytest.raises(RecipeError, match="recipe int4 compensates"):
        convert(llama, tmp_path / "m.tflite", engine="litert")
    assert not list(tmp_path.iterdir())


def test_weight_that_is_not_finite_is_told(llama, tmp_path):
    damaged = shutil.copytree(llama, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    weights["model.embed_tokens.weight"][5, 5] = torch.nan
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tok_embedding.weight has values"):
        convert(damaged, tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()


def test_floats_are_left_alone(llama, tmp_path):
    chosen = replace(recipe.resolve("fp16"), is_compensated=True)
    source = sources.obtain(llama)
    made, plain = (
        zoo.convert_source(source, recipe=r, shapes=SHAPES, output=tmp_path / f"{i}.tflite")
        for i, r in enumerate((chosen, recipe.resolve("fp16")))
    )
    assert sha256(made.artifact) == sha256(plain.artifact)
