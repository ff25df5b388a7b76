"""Promises, end to end: what choices lose, the file that is found, and the recipe that is left."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edgezoo_core import artifact, certificate, recipe, reproduction, search, sources, zoo
from edgezoo_core.calibrating.choice import quantized_activations
from edgezoo_core.cli import main
from edgezoo_core.errors import CalibrationError
from edgezoo_core.parity import run
from edgezoo_core.searching import options, sensitivity
from edgezoo_core.searching.promise import Promise
from edgezoo_core.searching.sensitivity import Rounding, Variant
from edgezoo_core.shapes import Shapes
from edgezoo_core.types import silent

SHAPES = Shapes(prefill_lengths=(4, 16), kv_cache_length=64)
#: A head of its own and folds; a head that is the embedding; no folds for the feed-forward.
NAMES = ["llama-grouped", "gemma-multi-query", "phi-multi-head"]
WANTED = {
    "shapes": SHAPES,
    "revision": None,
    "family": None,
    "card": None,
    "adapters": (),
    "engine": "streaming",
    "jobs": None,
    "use_cache": True,
    "with_bundle": False,
    "calibration": None,
}


def keep(folder, promise, output, **wanted):
    return search.keep(str(folder), promise, output=output, **{**WANTED, **wanted})


def plain_loss(module, tokens, exact, changed, before=None, path=None):
    """The mean KL of torch's own run with some parameters replaced."""
    parameters = dict(module.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in changed}
    hooks = []
    if path:
        linear = module.get_submodule(path)
        hooks.append(linear.register_forward_pre_hook(lambda _, x: (before(x[0]),)))
    try:
        with torch.inference_mode():
            for name, value in changed.items():
                parameters[name].data.copy_(value)
            said = run(module, tokens)[0].log_softmax(-1)
    finally:
        for hook in hooks:
            hook.remove()
        with torch.inference_mode():
            for name, value in kept.items():
                parameters[name].data.copy_(value)
    return float((exact.exp() * (exact - said)).sum(-1).mean())


@pytest.mark.parametrize("name", NAMES)
def test_each_choice_loses_what_a_run_of_its_own_loses(name, save_case):
    from edgezoo_core.model import materialize

    source = sources.obtain(str(save_case(name).folder))
    module = materialize(source.author())
    rules = recipe.weights(module)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, module.config.vocab_size, (1, 24), generator=generator).int()
    parameters = dict(module.named_parameters())
    with torch.inference_mode():
        exact = run(module, tokens)[0].log_softmax(-1)
    variants, expected = [], []
    for group in options.groups(rules):
        noisy = {
            p: parameters[p].detach() + 0.05 * torch.randn(parameters[p].shape, generator=generator)
            for p in group.parameters()
        }
        first = group.parameters()[0]
        path = group.path(first)
        powers = 2.0 ** torch.randint(-2, 3, (parameters[first].shape[1],), generator=generator)

        def before(x, powers=powers):
            flat = (x / powers).reshape(-1, x.shape[-1])
            return quantized_activations(flat).reshape(x.shape)

        roundings = {
            p: Rounding(
                lambda value=value: value,
                group.path(p),
                powers if p == first else None,
                p == first and path is not None,
            )
            for p, value in noisy.items()
        }
        others = [group.path(p) for p in noisy if p != first]
        if first != group.parameters()[-1]:
            assert all(others)
        variants.append(Variant(group.layer, roundings))
        expected.append(plain_loss(module, tokens, exact, noisy, before, path))
    found = sensitivity.measure(source.author(), variants, tokens[0].tolist(), silent)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)
    assert min(found) > 0


def test_promise_is_kept_and_its_recipe_makes_the_file_again(save_case, tmp_path):
    folder = save_case("llama-grouped").folder
    large, small = (
        keep(folder, Promise(max_bytes=size, prefer="speed"), tmp_path / f"{size}.tflite")
        for size in (10**9, 1)
    )
    assert large.chosen.is_kept
    assert not small.chosen.is_kept
    assert small.chosen.size_bytes < large.chosen.size_bytes
    # In between, there is something to choose.
    promise = Promise(max_kl=(small.chosen.lost.mean_kl * large.chosen.lost.mean_kl) ** 0.5)
    found = keep(folder, promise, tmp_path / "m.tflite")
    assert found.chosen.is_kept
    assert found.chosen.lost.mean_kl <= promise.max_kl
    assert len(set(found.chosen.formats)) > 1
    made = certified(found)
    assert artifact.read(made.path).manifest["promise"]["asked"]["max_kl"] == promise.max_kl
    # The recipe beside it is an ordinary one.
    again = zoo.convert(
        str(folder),
        recipe=str(found.recipe_file),
        shapes=SHAPES,
        output=tmp_path / "again.tflite",
        with_bundle=False,
    ).artifact
    assert again.manifest["artifact"]["sha256"] == made.manifest["artifact"]["sha256"]
    assert reproduction.reproduce(artifact.manifest_path(made.path)).passes
    assert not [p.name for p in tmp_path.iterdir() if "search" in p.name or "trial" in p.name]


def certified(found):
    made = found.conversion.artifact
    assert made.path.stat().st_size == found.chosen.size_bytes
    assert made.manifest["promise"]["is_kept"] is found.chosen.is_kept
    report = certificate.verify(made.path)
    assert report.structure.passes
    assert report.weights.passes
    return made


@pytest.mark.parametrize("name", ["gemma-multi-query", "phi-multi-head"])
def test_other_families_are_searched(name, save_case, tmp_path):
    folder = str(save_case(name).folder)
    least = zoo.convert(
        folder,
        recipe="dynamic_int4_block32",
        shapes=SHAPES,
        output=tmp_path / "least.tflite",
        with_bundle=False,
    ).artifact
    promise = Promise(max_bytes=int(1.25 * least.path.stat().st_size))
    found = keep(folder, promise, tmp_path / "m.tflite")
    assert len(set(found.chosen.formats)) > 1
    assert found.chosen.is_kept
    certified(found)


@pytest.fixture
def llama(save_case):
    return str(save_case("llama-grouped").folder)


def command(*arguments):
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def test_command_tells_what_was_found(llama, tmp_path):
    done = command(
        llama, "--target-size", "1k", "--prefill", 4, "--kv-cache", 64, "--no-bundle",
        "--output", tmp_path / "m.tflite", "--plot", tmp_path / "m.png", "--json",
    )  # fmt: skip
    assert done.exit_code == 3, done.output
    told = json.loads(done.stdout)["promise"]
    assert told["is_kept"] is False
    assert told["asked"]["max_bytes"] == 1000
    assert {g["name"] for g in told["groups"]} >= {"embedding", "layers.0.gate+up"}
    assert all({o["format"] for o in g["options"]} >= {"fp16"} for g in told["groups"])
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "m.toml").read_text().startswith('name = "0.001MB"')
    # What stands there stands.
    for path in tmp_path.iterdir():
        if path.suffix != ".toml":
            path.unlink()
    before = (tmp_path / "m.toml").read_text()
    done = command(llama, "--max-kl", 1, "--kv-cache", 64, "--output", tmp_path / "m.tflite")
    assert done.exit_code == 1
    assert "m.toml exists" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m.toml"]
    assert (tmp_path / "m.toml").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--prefer", "size"], 2, "--prefer goes with --max-kl"),
        (["--plot", "x.png"], 2, "--plot goes with --max-kl"),
        (["--held-out", "x.txt"], 2, "--held-out goes with --max-kl"),
        (["--max-kl", "0"], 2, "is no divergence"),
        (["--max-kl", "nan"], 2, "is no divergence"),
        (["--max-ppl-increase", "-1%"], 2, "is no share"),
        (["--target-size", "tiny"], 2, "is no size"),
        (["--max-kl", "0.1", "--recipe", "int8"], 1, "leave out --recipe"),
        (["--max-kl", "0.1", "--engine", "litert"], 1, "leave out --engine litert"),
        (["--max-kl", "0.1", "--plot", "x.gif"], 1, "is no .png"),
        (["--max-kl", "0.1", "--held-out", "none.txt"], 1, "none.txt cannot be read"),
    ],
)
def test_what_cannot_be_promised(llama, tmp_path, arguments, code, words):
    done = command(llama, "--output", tmp_path / "m.tflite", *arguments)
    assert done.exit_code == code, done.output
    assert words in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_what_failed(llama, tmp_path):
    missing = tmp_path / "missing.txt"
    with pytest.raises(CalibrationError, match="cannot be read"):
        keep(llama, Promise(max_kl=0.1), tmp_path / "m.tflite", calibration=missing)
    with pytest.raises(CalibrationError, match="cannot be read"):
        keep(llama, Promise(max_kl=0.1), tmp_path / "m.tflite", held_out=missing)
    assert not list(tmp_path.iterdir())
