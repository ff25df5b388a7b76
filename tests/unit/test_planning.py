"""What a plan finds: disks, memory, output, access; with resources that are made up."""

from __future__ import annotations

import json
import math
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from edgezoo_core import planning, sources
from edgezoo_core import recipe as recipes
from edgezoo_core.adapter_sources import name_adapters
from edgezoo_core.compiler import workers
from edgezoo_core.errors import ArtifactError, CheckpointError, ConversionError, TargetError
from edgezoo_core.planning import Finding, Plan, costs, resources, sizes
from edgezoo_core.planning.costs import Speed, Work
from edgezoo_core.planning.sizes import Sizes
from edgezoo_core.shapes import Shapes, SignatureOptions

Usage = namedtuple("Usage", "total used free")
GB = 10**9
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 2048,
}
SHAPES = {
    "model.embed_tokens.weight": (512, 128),
    "model.layers.0.self_attn.q_proj.weight": (128, 128),
    "model.layers.0.mlp.down_proj.weight": (128, 256),
    "model.layers.1.mlp.down_proj.weight": (128, 256),
    "model.layers.1.input_layernorm.weight": (128,),
    "model.layers.1.self_attn.rotary_emb.inv_freq": (16,),
    "lm_head.weight": (512, 128),
}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint whose headers are true and whose values are holes."""
    source = tmp_path / "source"
    source.mkdir()
    header, end = {}, 0
    for name, shape in SHAPES.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (source / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (source / "config.json").write_text(json.dumps(CONFIG))
    return source


@pytest.fixture
def machine(monkeypatch):
    """A machine with this much free memory and disk."""

    def make(memory=64 * GB, disk=640 * GB):
        monkeypatch.setattr(workers, "available_bytes", lambda: memory)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(disk, 0, disk))

    make()
    return make


def light_plan(folder, output, **options) -> Plan:
    """Plans as `convert` does where the files are here: by headers."""
    prospect = sources.look(str(folder))
    wanted = {
        "recipe": None,
        "shapes": None,
        "output": output,
        "force": False,
        "family": None,
        "adapters": (),
        "engine": "streaming",
        "jobs": 2,
        "use_cache": False,
        "with_bundle": True,
        "calibration": None,
        **options,
    }
    request = planning.request(prospect, **wanted)
    return planning.examine(str(folder), prospect, request, is_full=False)


def test_headers_alone_give_sizes(folder, machine, tmp_path):
    plan = light_plan(folder, tmp_path, recipe=recipes.resolve("none"))
    weights = sum(4 * math.prod(s) for n, s in SHAPES.items() if "rotary" not in n)
    assert (plan.basis, plan.fits, plan.findings) == ("headers", True, ())
    assert weights < plan.artifact_bytes < weights + 400_000
    # A tokenizer is not there, so no bundle comes out.
    assert plan.bundle_bytes == 0
    assert plan.disks[0].needed_bytes > plan.artifact_bytes
    assert plan.options == SignatureOptions()
    assert json.loads(json.dumps(plan.to_json()))["fits"] is True


def test_a_recipe_by_parts_counts_by_parts(folder, machine, tmp_path):
    whole = light_plan(folder, tmp_path, recipe=recipes.resolve("dynamic_int8"))
    linear = light_plan(folder, tmp_path, recipe=recipes.resolve("dynamic_int8_linear"))
    table = 512 * 128
    assert linear.artifact_bytes - whole.artifact_bytes == 3 * table - 12 * 512


def test_a_disk_that_is_too_small_is_an_error(folder, machine, tmp_path):
    machine(disk=100_000)
    plan = light_plan(folder, tmp_path)
    (finding,) = plan.errors
    assert finding.subject == "disk"
    assert "output, compiled graph" in finding.message
    with pytest.raises(ArtifactError, match=r"0\.1 MB free") as e:
        planning.refuse(plan)
    assert "--output" in e.value.remedy


def test_memory_that_one_worker_would_do_with(folder, machine, tmp_path):
    machine(memory=800_000_000)
    (finding,) = light_plan(folder, tmp_path).errors
    assert finding.subject == "memory"
    assert finding.remedy.endswith("--jobs 1")
    assert light_plan(folder, tmp_path, jobs=1).fits


def test_memory_that_may_do_is_a_warning(folder, machine, tmp_path):
    peak = light_plan(folder, tmp_path).peak_memory_bytes
    machine(memory=peak - 1)
    plan = light_plan(folder, tmp_path)
    assert plan.fits
    assert [(f.level, f.subject) for f in plan.findings] == [("warning", "memory")]


def test_memory_that_the_system_does_not_tell_is_no_finding(folder, machine, tmp_path):
    machine(memory=1 << 62)
    plan = light_plan(folder, tmp_path)
    assert (plan.available_memory_bytes, plan.findings) == (None, ())


def test_all_errors_are_told_at_once_with_their_remedies(folder, machine, tmp_path):
    machine(memory=1000, disk=1000)
    (tmp_path / "source_dynamic_int8_ekv1280.tflite").touch()
    plan = light_plan(folder, tmp_path, adapters=name_adapters(["./nowhere"]), engine="litert")
    assert {f.subject for f in plan.errors} == {"memory", "disk", "output", "adapters"}
    with pytest.raises(ConversionError) as e:
        planning.refuse(plan)
    for finding in plan.errors:
        assert finding.message in e.value.message
        assert finding.remedy in e.value.remedy


def test_what_exists_is_in_the_way_unless_it_may_be_replaced(folder, machine, tmp_path):
    (tmp_path / "source_dynamic_int8_ekv1280.tflite").touch()
    assert [f.subject for f in light_plan(folder, tmp_path).errors] == ["output"]
    assert light_plan(folder, tmp_path, force=True).fits


def test_an_output_under_a_file_cannot_be_written(folder, machine, tmp_path):
    (tmp_path / "file").touch()
    (finding,) = light_plan(folder, tmp_path / "file" / "below").errors
    assert (finding.subject, finding.kind) == ("output", ArtifactError)


def test_impossible_shapes_are_found(folder, machine, tmp_path):
    plan = light_plan(folder, tmp_path, shapes=Shapes((64,), 64))
    (finding,) = plan.errors
    assert finding.subject == "shapes"
    assert "cannot hold a prefill of 64 tokens" in finding.message


def test_an_unknown_family_leaves_the_rest_of_the_plan(folder, machine, tmp_path):
    (folder / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["Mamba"]}))
    plan = light_plan(folder, tmp_path)
    assert (plan.family, plan.artifact_bytes) == (None, None)
    with pytest.raises(TargetError, match="no installed family converts Mamba"):
        planning.refuse(plan)


def test_a_single_error_keeps_its_kind():
    finding = Finding("error", "tensors", "cut short", "obtain it again", CheckpointError)
    plan = Plan("x", "x", None, None, None, "mit", False, "none", "streaming", findings=(finding,))
    with pytest.raises(CheckpointError, match="cut short"):
        planning.refuse(plan)


def test_what_goes_to_one_disk_is_added_up(machine, tmp_path):
    machine(disk=100)
    uses = [("download", tmp_path / "a" / "b", 60), ("output", tmp_path, 50), ("none", tmp_path, 0)]
    (disk,) = resources.disks(uses)
    assert (disk.holds, disk.needed_bytes, disk.free_bytes) == (("download", "output"), 110, 100)


def work(**changes) -> Work:
    """Describes a model of a billion parameters."""
    usual = {
        "engine": "streaming",
        "basis": "module",
        "jobs": 2,
        "signatures": 3,
        "layers": 22,
        "parameters": GB,
        "rows": 32_000,
        "has_blocks": False,
        "sizes": Sizes(GB, 5_000_000, 2_000_000, 0),
        "checkpoint_bytes": 2 * GB,
        "bundle_bytes": 0,
        "tokenizer_bytes": 0,
        "needs_torch": False,
        "largest": 1 << 20,
        "is_calibrated": False,
        "is_compensated": False,
    }
    return Work(**{**usual, **changes})


def test_what_the_cache_has_costs_nothing():
    for kind, basis in (("trace", "trace"), ("skeleton", "skeleton")):
        assert kind in costs.memory(work())
        assert kind not in costs.memory(work(basis=basis))
        assert kind not in costs.seconds(work(basis=basis), Speed())
    assert "skeleton" in costs.seconds(work(basis="trace"), Speed())


def test_calibration_is_a_stage_of_its_own():
    plain, calibrated = costs.memory(work()), costs.memory(work(is_calibrated=True))
    assert calibrated.keys() - plain.keys() == {"calibrating"}
    larger = costs.memory(work(is_calibrated=True, largest=1 << 29))
    # The largest parameter is held in float32.
    assert larger["calibrating"] - calibrated["calibrating"] >= 4 * ((1 << 29) - (1 << 20))
    small, large = (
        costs.seconds(work(is_calibrated=True, parameters=n), costs.Speed())["calibrating"]
        for n in (GB, 3 * GB)
    )
    assert small < large < 3 * small
    rounding = work(is_calibrated=True, is_compensated=True)
    assert costs.memory(rounding)["calibrating"] > calibrated["calibrating"]
    plain_s, rounding_s = (
        costs.seconds(asked, costs.Speed())["calibrating"]
        for asked in (work(is_calibrated=True), rounding)
    )
    assert rounding_s > plain_s
    assert "calibrating" not in costs.seconds(work(), costs.Speed())


def test_a_slower_machine_takes_longer():
    usual = sum(costs.seconds(work(bundle_bytes=GB), Speed()).values())
    slow = sum(costs.seconds(work(bundle_bytes=GB), Speed(2, 2, 2)).values())
    assert slow == pytest.approx(2 * usual)


def test_the_other_engine_holds_the_model():
    assert max(costs.memory(work(engine="litert")).values()) > 20 * GB
    assert max(costs.memory(work()).values()) < 2 * GB


def test_a_probe_of_a_disk_that_cannot_be_written_takes_the_usual_speed(tmp_path):
    speed = costs.probe(tmp_path / "nowhere")
    assert speed.disk == 1
    assert speed.python > 0
    assert speed.hashing > 0


def test_kv_cache_lengths_end_at_the_context():
    assert sizes.kv_cache(10, 2048, 1000) == {512: 5120, 1000: 10000, 1280: 12800, 2048: 20480}


def test_nothing_but_a_folder_that_is_there_is_existing(tmp_path):
    assert resources.existing(tmp_path / "a" / "b") == tmp_path
    assert resources.existing(Path("/")) == Path("/")
