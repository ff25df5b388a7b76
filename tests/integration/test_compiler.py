"""Cache, workers and both engines, as a conversion uses them."""

from __future__ import annotations

import copy
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from same_graph import differences

from edgezoo_core import compiler, recipe, sources, zoo
from edgezoo_core.cache import Cache
from edgezoo_core.compiler import versions, workers
from edgezoo_core.errors import ArtifactError, CacheError, ConversionError, TargetError
from edgezoo_core.shapes import Shapes
from edgezoo_core.types import silent

SHAPES = Shapes(prefill_lengths=(4,), kv_cache_length=32)
LAYERS = 6  # enough that the middle ones are stamped


@pytest.fixture(scope="module")
def saved(save_model):
    """Phi: it has biases and norms, all of which a skeleton must leave out."""
    return save_model("phi2", num_hidden_layers=LAYERS, dtype=torch.bfloat16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def convert(folder, output, **options):
    return zoo.convert(str(folder), shapes=SHAPES, output=Path(output), jobs=1, **options)


def content(conversion):
    return conversion.artifact.path.read_bytes()


@pytest.fixture(scope="module")
def first(saved, tmp_path_factory):
    """A conversion that filled a cache."""
    folder = tmp_path_factory.mktemp("first")
    before = os.environ.get("EDGEZOO_CACHE")
    os.environ["EDGEZOO_CACHE"] = str(folder / "cache")
    try:
        made = convert(saved.folder, folder)
    finally:
        os.environ.pop("EDGEZOO_CACHE")
        if before:
            os.environ["EDGEZOO_CACHE"] = before
    assert made.from_cache == ()
    return made


@pytest.fixture
def warm(first, monkeypatch):
    """The cache that the first conversion filled."""
    folder = first.artifact.path.parent / "cache"
    monkeypatch.setenv("EDGEZOO_CACHE", str(folder))
    return folder


def test_second_time_the_cache_gives_the_same_bytes(saved, first, warm, tmp_path):
    again = convert(saved.folder, tmp_path)
    assert again.from_cache == ("trace", "skeleton")
    assert content(again) == content(first)


def test_naming_a_default_is_the_same_trace(saved, first, warm, tmp_path):
    shapes = Shapes((4, 4), 32, "transposed", mask_as_input=True)
    again = zoo.convert(str(saved.folder), shapes=shapes, output=tmp_path, jobs=1)
    assert again.from_cache == ("trace", "skeleton")
    assert content(again) == content(first)


def test_another_recipe_traces_nothing(saved, warm, tmp_path):
    made = convert(saved.folder, tmp_path, recipe="fp16")
    assert made.from_cache == ("trace",)
    assert not any(stage.startswith("tracing") for stage in made.seconds)


def test_adapter_folder_that_is_not_there(saved, tmp_path):
    with pytest.raises(TargetError, match=r"--adapter \./nowhere: no such folder"):
        convert(saved.folder, tmp_path, adapters=["./nowhere"])


def test_another_checkpoint_of_the_config_gets_nothing_of_the_first(saved, warm, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    tensors = load_file(saved.folder / "model.safetensors")
    for index, (name, tensor) in enumerate(sorted(tensors.items())):
        if tensor.dim() == 1:
            tensors[name] = tensor * 0.5 + (index + 1) / 64
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    config = json.loads((saved.folder / "config.json").read_text())
    # What names the checkpoint does not shape its graph.
    config.update(_name_or_path="someone/else", transformers_version="5.0.0", torch_dtype="float32")
    (other / "config.json").write_text(json.dumps(config))
    cached = convert(other, tmp_path / "cached")
    alone = convert(other, tmp_path / "alone", use_cache=False)
    assert cached.from_cache == ("trace", "skeleton")
    assert alone.from_cache == ()
    assert content(cached) == content(alone)


def test_a_damaged_entry_is_made_again(saved, first, tmp_path, monkeypatch):
    import shutil

    folder = tmp_path / "cache"
    shutil.copytree(first.artifact.path.parent / "cache", folder)
    monkeypatch.setenv("EDGEZOO_CACHE", str(folder))
    for head in folder.glob("skeleton/*/head.bin"):
        damaged = bytearray(head.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        head.write_bytes(damaged)
    made = convert(saved.folder, tmp_path / "out")
    assert made.from_cache == ("trace",)
    assert content(made) == content(first)


def test_a_cache_that_cannot_be_written_is_done_without(
    saved, first, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEZOO_CACHE", str(tmp_path / "file" / "below"))
    made = convert(saved.folder, tmp_path / "out")
    assert "converting without the cache" in caplog.text
    assert content(made) == content(first)


def test_full_disk_of_a_worker_is_told(saved, tmp_path):
    job = sources.obtain(str(saved.folder)).job(recipe.resolve("none"), SHAPES).to_json()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # workers inherit it
    try:
        with pytest.raises(CacheError, match="File too large"):
            workers.run("trace", [{"job": job, "folder": str(tmp_path), "share": [0, 1]}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def compilation(source, job, plugin=None, checkpoint=None):
    return compiler._Compilation(
        job, plugin or source.plugin, checkpoint or source.checkpoint, Cache(), 1, silent
    )


def _with_config(job, **fields):
    return replace(job, config={**job.config, **fields})


CHANGES = {
    "a field that the author read": lambda j: _with_config(j, layer_norm_eps=3e-5),
    "a field that was absent": lambda j: _with_config(j, partial_rotary_factor=0.25),
    "a field that nobody knows": lambda j: _with_config(j, brand_new=1),
    "a value of another type": lambda j: _with_config(j, hidden_size=128.0),
    "the prefill lengths": lambda j: replace(j, shapes=replace(j.shapes, prefill_lengths=(8,))),
    "the cache's length": lambda j: replace(j, shapes=replace(j.shapes, kv_cache_length=48)),
    "the layout": lambda j: replace(j, shapes=replace(j.shapes, kv_layout="default")),
    "the mask": lambda j: replace(j, shapes=replace(j.shapes, mask_as_input=False)),
    "the card's shapes": lambda j: replace(j, base=replace(j.base, kv_cache_length=640)),
    "the family": lambda j: replace(j, model=replace(j.model, family="other")),
    "the card": lambda j: replace(j, model=replace(j.model, card_id="phi-2")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_shapes_the_graph_is_in_the_key(change, saved, warm):
    source = sources.obtain(str(saved.folder))
    job = source.job(recipe.resolve("dynamic_int8"), SHAPES)
    assert compilation(source, job)._found_trace() is not None
    assert compilation(source, CHANGES[change](job))._found_trace() is None


def test_checkpoint_plugin_and_libraries_are_in_the_key(saved, warm, monkeypatch):
    source = sources.obtain(str(saved.folder))
    job = source.job(recipe.resolve("dynamic_int8"), SHAPES)
    tensors = dict(source.checkpoint.tensors)
    name = next(iter(tensors))
    for changed in (
        {**tensors, name: replace(tensors[name], dtype="float16")},
        {**tensors, name: replace(tensors[name], shape=(1, *tensors[name].shape))},
        {("x" + n if n == name else n): t for n, t in tensors.items()},
    ):
        other = replace(source.checkpoint, tensors=changed)
        assert compilation(source, job, checkpoint=other)._found_trace() is None
    newer = replace(source.plugin, version="9.9")
    assert compilation(source, job, plugin=newer)._found_trace() is None
    for function, answer in (("_version", "0.0"), ("_digest_of", "another source")):
        with monkeypatch.context() as m:
            m.setattr(versions, function, lambda _, answer=answer: answer)
            assert compilation(source, job)._found_trace() is None
    assert compilation(source, job)._found_trace() is not None


def test_recipes_by_content_not_by_name(saved, warm, tmp_path):
    for text in ('default = "fp16"\n', 'default = "fp16"\nlm_head = "weight_only_int8"\n'):
        file = tmp_path / "mine.toml"
        file.write_text(text)
        made = convert(saved.folder, tmp_path / "out", recipe=str(file), force=True)
        assert made.from_cache == ("trace",)


def test_both_engines_give_the_same(saved, first, tmp_path, cache):
    oracle = convert(saved.folder, tmp_path, engine="litert")
    assert differences(first.artifact.path, oracle.artifact.path) == []
    ours, theirs = first.artifact.manifest, oracle.artifact.manifest
    assert {k: ours[k] for k in ("recipe", "options", "config", "signatures")} == {
        k: theirs[k] for k in ("recipe", "options", "config", "signatures")
    }
    assert not cache.exists()


def test_manifest_hashes_are_those_of_the_files(saved, first):
    from edgezoo_core.checkpoint import sha256

    manifest = first.artifact.manifest
    assert manifest["artifact"]["sha256"] == sha256(first.artifact.path)
    files = {f["name"]: f["sha256"] for f in manifest["checkpoint"]["files"]}
    assert files == {name: sha256(saved.folder / name) for name in files}
    assert "model.safetensors" in files


def test_adapter_equals_what_peft_merged_before(saved, warm, tmp_path):
    import peft

    model = copy.deepcopy(saved.reference)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "fc1", "dense"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by an older name
        adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    streamed = convert(saved.folder, tmp_path / "a", adapters=[str(tmp_path / "adapter")])
    before = convert(tmp_path / "merged", tmp_path / "b")
    assert differences(streamed.artifact.path, before.artifact.path) == []
    plain = convert(saved.folder, tmp_path / "c")
    assert content(plain) != content(streamed)
    recorded = streamed.artifact.manifest["adapters"]
    assert [a["source"] for a in recorded] == [str(tmp_path / "adapter")]


def test_a_file_that_comes_out_wrong_is_not_kept(saved, warm, tmp_path, monkeypatch):
    from edgezoo_core.conversion import streaming

    stock = streaming._write

    def broken(file, data, offset):
        stock(file, data, offset + 1 if len(data) > 10_000 else offset)

    monkeypatch.setattr(streaming, "_write", broken)
    with pytest.raises(ConversionError, match="came out wrong and was not kept"):
        convert(saved.folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_full_disk_is_told(saved, warm, tmp_path, monkeypatch):
    import errno

    from edgezoo_core.conversion import streaming

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(streaming, "_write", full)
    with pytest.raises(ArtifactError, match="No space left"):
        convert(saved.folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_worker_that_dies_says_why():
    with pytest.raises(ConversionError, match=r"(?s)a worker died with exit code 1.*KeyError") as e:
        workers.run("trace", [{"job": {}, "folder": "", "share": (0, 1)}])
    assert e.value.remedy


def command_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended meanwhile, and is not waited for yet
        return ""


def test_worker_that_is_killed_says_so(saved, cache, tmp_path):
    def kill():
        for _ in range(600):
            children = psutil.Process().children(recursive=True)
            found = [c for c in children if "edgezoo_core.compiler" in command_of(c)]
            if found:
                found[0].kill()
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ConversionError, match="a worker was killed") as e:
        convert(saved.folder, tmp_path / "out")
    killer.join()
    assert "--jobs 1" in e.value.remedy
    assert list(cache.glob("trace/*")) == list(cache.glob("partial/*")) == []


PARENT = """
import sys
from pathlib import Path
from edgezoo_core import zoo
from edgezoo_core.shapes import Shapes
zoo.convert(sys.argv[1], shapes=Shapes((4,), 32), output=Path(sys.argv[2]), jobs=2)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(how, saved, cache, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), saved.folder, tmp_path / "out"],
        stderr=subprocess.DEVNULL,
    )
    workers_seen = []
    while len(workers_seen) < 2:
        workers_seen = psutil.Process(process.pid).children()
        time.sleep(0.02)
    time.sleep(1.0)
    process.send_signal(how)
    assert process.wait(30) != 0
    _, alive = psutil.wait_procs(workers_seen, timeout=30)
    assert alive == []
    assert [p for p in (tmp_path / "out").glob("*")] == []  # noqa: C416
    if how == signal.SIGINT:
        assert list(cache.glob("partial/*")) == []


def test_tensorflow_is_not_needed_and_not_faked(saved, cache, tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise ImportError('no tensorflow here')")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from edgezoo_core.compiler.schema import import_litert_torch
import_litert_torch()
import litert_torch.generative.utilities.converter
assert not [m for m in sys.modules if m.partition(".")[0] == "tensorflow"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
