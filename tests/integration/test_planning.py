"""Sizes that a plan predicts, held against what comes out, for all families.

The weights are exact; what is predicted of the graph is a few percent off, and in models as small
as these the graph is a third of the file. At real widths it is a thousandth.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from edgezoo_core import compiler, planning, recipe, sources, zoo
from edgezoo_core.cache import Cache
from edgezoo_core.compiler.survey import describe
from edgezoo_core.planning import costs
from edgezoo_core.shapes import Shapes

#: Of the whole file, for models of two or three layers.
TOLERANCE = 0.03
MIXED = """
default = "dynamic_int8"
embedding = "fp16"
[layers.0]
down = "dynamic_int4_block32"
up = "none"
"""
WIDE = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 2048}
CASES = [
    ("tinyllama", {**WIDE}, ("none", "fp16"), Shapes((4,), 64)),
    ("tinyllama", {**WIDE}, ("weight_only_int8",), Shapes((4, 16), 192, "default", False)),
    ("gemma", {**WIDE, "head_dim": 32}, ("dynamic_int8", "dynamic_int4_block32"), Shapes()),
    ("phi2", {**WIDE, "tie_word_embeddings": True}, ("dynamic_int8", "mixed"), Shapes((4,), 64)),
]


@pytest.mark.parametrize(("family", "config", "recipes", "shapes"), CASES)
def test_predicted_sizes_come_true(save_model, tmp_path, family, config, recipes, shapes):
    folder = save_model(family, **config).folder
    (tmp_path / "mixed.toml").write_text(MIXED)
    cache = Cache(tmp_path / "cache")
    for name in recipes:
        chosen = str(tmp_path / "mixed.toml") if name == "mixed" else name
        prospect = sources.look(str(folder))
        wanted = planning.request(
            prospect,
            recipe=recipe.resolve(chosen),
            shapes=shapes,
            output=tmp_path,
            force=False,
            family=None,
            adapters=(),
            engine="streaming",
            jobs=1,
            use_cache=False,
            with_bundle=False,
            calibration=None,
        )
        source = sources.fetch(prospect, sources.settle(prospect))
        job = source.job(recipe.resolve(chosen), shapes)
        compiled = compiler.compile_job(job, source.plugin, source.checkpoint, cache, jobs=2)
        compiled.head.close()
        actual = compiled.program.size_bytes
        for is_full in {name == recipes[0], False}:
            plan = planning.examine(str(folder), prospect, wanted, is_full=is_full)
            assert plan.fits, plan.findings
            off = plan.artifact_bytes / actual - 1
            print(f"{family} {name}: {plan.basis} predicts {plan.artifact_bytes:,}: {off:+.2%}")
            # Headers alone do not tell the parts of every family from each other.
            assert abs(off) < (TOLERANCE if plan.basis == "module" else 0.1)
            if plan.basis == "module":
                assert plan.options == compiled.options


def test_what_is_planned_is_what_is_made(save_model, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEZOO_CACHE", str(tmp_path / "cache"))
    folder = str(save_model("phi2", **WIDE).folder)
    options = {"shapes": Shapes((4,), 64), "output": tmp_path / "out", "with_bundle": False}
    planned = planning.plan(folder, **options)
    made = zoo.convert(folder, **options)
    size = made.artifact.path.stat().st_size
    print(f"predicted {planned.artifact_bytes:,}, made {size:,}; memory {planned.memory_bytes},")
    print(f"made with {made.peak_memory_bytes}")
    assert planned.basis == "module"
    assert abs(planned.artifact_bytes / size - 1) < TOLERANCE
    assert planned.options == compiler_options(made)
    # The leader's share is not in what the workers say of themselves.
    traced = made.peak_memory_bytes["trace"] + costs._LEADER_BYTES
    assert abs(planned.memory_bytes["trace"] / traced - 1) < 0.1
    again = planning.plan(folder, **options)
    assert (again.basis, again.artifact_bytes) == ("skeleton", size)
    assert set(again.memory_bytes) == {"streaming"}
    other = planning.plan(folder, recipe="none", **options)
    assert other.basis == "trace"
    refused = planning.plan(folder, **{**options, "output": tmp_path / "out"}, force=False)
    assert [f.subject for f in refused.errors] == ["output"]


def compiler_options(made):
    """Returns the shapes that a manifest records."""
    from edgezoo_core.shapes import SignatureOptions

    return SignatureOptions(**made.artifact.manifest["options"])


def test_a_module_is_described_in_its_own_words(save_model):
    folder = save_model("gemma", head_dim=32).folder
    module = sources.obtain(str(folder)).author().module
    told = describe(module)
    # Keys and values of two layers and two groups of 32 numbers, float32.
    assert told["kv_slot_bytes"] == 2 * 2 * 2 * 32 * 4
    assert (told["depth"], told["context_length"]) == (2, 256)
    assert told["weights"] == [asdict(w) for w in recipe.weights(module)]


def test_a_config_and_a_recipe_that_do_not_fit_are_findings(save_model, tmp_path):
    folder = Path(save_model("tinyllama", intermediate_size=272).folder)
    plan = planning.plan(str(folder), recipe="dynamic_int4_block32", output=tmp_path)
    (finding,) = plan.errors
    assert finding.subject == "recipe"
    assert "the block size does not divide" in finding.message
