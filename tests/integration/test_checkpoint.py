"""Opening checkpoints of every layout, and of every kind of damage."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgezoo_core.checkpoint import TEXT_FILES, open_folder
from edgezoo_core.errors import CheckpointError
from edgezoo_core.mapping import TensorNames, check, map_parameters

SAFETENSORS_INDEX = "model.safetensors.index.json"
PYTORCH_INDEX = "pytorch_model.bin.index.json"
GIB = 1 << 30


def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "embed.weight": torch.randn(6, 4, generator=generator),
        "half.weight": torch.randn(4, 4, generator=generator).to(torch.float16),
        "brain.weight": torch.randn(4, 4, generator=generator).to(torch.bfloat16),
        "double.weight": torch.randn(2, 3, 4, generator=generator, dtype=torch.float64),
        "scalar": torch.randn((), generator=generator),
    }


def halves():
    names = list(state())
    return [{n: state()[n] for n in names[:2]}, {n: state()[n] for n in names[2:]}]


def write_shards(folder, index, names, save):
    weight_map = {}
    for name, part in zip(names, halves(), strict=True):
        save(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def write_safetensors_shards(folder):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    return write_shards(folder, SAFETENSORS_INDEX, names, save_file)


def write_pytorch_shards(folder):
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    return write_shards(folder, PYTORCH_INDEX, names, torch.save)


def write_index(folder, weight_map, index=SAFETENSORS_INDEX):
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))


def assert_holds(checkpoint, expected):
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        stored = checkpoint.tensors[name]
        assert stored.name == name
        assert stored.sources == (name,)
        assert stored.shape == tuple(tensor.shape)
        assert stored.dtype == str(tensor.dtype).removeprefix("torch.")
        assert stored.size_bytes == tensor.nbytes
        assert stored.read().dtype == tensor.dtype
        assert torch.equal(stored.read(), tensor)


def resident_bytes():
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


# Layouts.


def test_one_safetensors_file(tmp_path):
    save_file(state(), tmp_path / "model.safetensors")
    checkpoint = open_folder(tmp_path)
    assert_holds(checkpoint, state())
    assert checkpoint.files == ("model.safetensors",)
    assert checkpoint.config is None
    assert checkpoint.source == str(tmp_path)


def test_one_safetensors_file_of_another_name(tmp_path):
    save_file(state(), tmp_path / "weights.safetensors")
    assert_holds(open_folder(tmp_path), state())


def test_source_is_as_given(tmp_path):
    save_file(state(), tmp_path / "model.safetensors")
    assert open_folder(tmp_path, "org/name@abc").source == "org/name@abc"


def test_config_and_texts_belong_to_the_checkpoint(tmp_path):
    save_file(state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for name in (*TEXT_FILES, "README.md", "model.onnx"):
        (tmp_path / name).write_text("{}")
    checkpoint = open_folder(tmp_path)
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.files == (*sorted([*TEXT_FILES, "config.json"]), "model.safetensors")


@pytest.mark.parametrize("write", [write_safetensors_shards, write_pytorch_shards])
def test_shards_with_an_index(tmp_path, write):
    weight_map = write(tmp_path)
    checkpoint = open_folder(tmp_path)
    assert_holds(checkpoint, state())
    assert {n: t.file for n, t in checkpoint.tensors.items()} == weight_map
    (index,) = [p.name for p in tmp_path.iterdir() if p.name.endswith(".index.json")]
    assert checkpoint.files == (index, *sorted(set(weight_map.values())))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "gemma-2b.ckpt"])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older format"])
def test_one_pytorch_file(tmp_path, name, is_zip):
    torch.save(state(), tmp_path / name, _use_new_zipfile_serialization=is_zip)
    checkpoint = open_folder(tmp_path)
    assert_holds(checkpoint, state())
    assert checkpoint.files == (name,)


def test_state_dict_inside_model_state_dict(tmp_path):
    torch.save({"model_state_dict": state(), "step": 7}, tmp_path / "model.ckpt")
    assert_holds(open_folder(tmp_path), state())


def test_kaggle_layout(tmp_path):
    tensors = {
        "embedder.weight": torch.randn(16, 8),
        "freqs_cis": torch.polar(torch.ones(4, 2), torch.ones(4, 2)),
        "model.layers.0.self_attn.qkv_proj.weight": torch.randn(24, 8),
    }
    torch.save({"model_state_dict": tensors}, tmp_path / "gemma-2b.ckpt")
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    checkpoint = open_folder(tmp_path)
    assert checkpoint.config is None
    assert checkpoint.files == ("tokenizer.model", "gemma-2b.ckpt")
    assert checkpoint.tensors.keys() == tensors.keys()
    assert checkpoint.tensors["freqs_cis"].dtype is None, "complex numbers are no weights"
    qkv = checkpoint.tensor("model.layers.0.self_attn.qkv_proj.weight")
    assert torch.equal(qkv.read(), tensors[qkv.name])


def test_safetensors_are_preferred(tmp_path):
    save_file(state(), tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    (tmp_path / PYTORCH_INDEX).write_bytes(b"never opened")
    assert open_folder(tmp_path).files == ("model.safetensors",)


def test_what_a_trainer_leaves_is_no_model(tmp_path):
    torch.save(state(), tmp_path / "pytorch_model.bin")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pt"):
        (tmp_path / name).write_bytes(b"never opened")
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "weights.bin")
    assert open_folder(tmp_path).files == ("weights.bin",)


# Lazy reading.


def write_sparse(path, entries):
    """Writes a safetensors file whose data are a hole: name -> (dtype, shape, bytes)."""
    header, end = {}, 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(f.tell() + end)


def test_huge_safetensors_opens_at_once(tmp_path):
    path = tmp_path / "model.safetensors"
    write_sparse(path, {"huge": ("F32", [2 << 20, 1 << 10], 8 * GIB), "tiny": ("F32", [2], 8)})
    assert path.stat().st_size > 8 * GIB
    before, start = resident_bytes(), time.perf_counter()
    checkpoint = open_folder(tmp_path)
    tiny = checkpoint.tensor("tiny").read()
    seconds, grown = time.perf_counter() - start, resident_bytes() - before
    assert checkpoint.tensor("huge").shape == (2 << 20, 1 << 10)
    assert torch.equal(tiny, torch.zeros(2))
    assert seconds < 1, f"took {seconds:.2f} s"
    assert grown < 32 << 20, f"took {grown / 1e6:.0f} MB"


def test_large_pytorch_file_is_mapped_not_read(tmp_path):
    torch.save({"large": torch.ones(32 << 20)}, tmp_path / "pytorch_model.bin")
    before = resident_bytes()
    checkpoint = open_folder(tmp_path)
    grown = resident_bytes() - before
    assert grown < 32 << 20, f"took {grown / 1e6:.0f} MB for a file of 134 MB"
    assert checkpoint.tensor("large").read()[-1] == 1


@pytest.mark.parametrize("write", [write_safetensors_shards, write_pytorch_shards])
def test_weight_files_are_those_that_hold_tensors(tmp_path, write):
    weight_map = write(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    checkpoint = open_folder(tmp_path)
    assert checkpoint.weight_files == tuple(sorted(set(weight_map.values())))
    assert checkpoint.files[-2:] == checkpoint.weight_files


def test_hash_files(tmp_path):
    write_safetensors_shards(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    stages = []
    checkpoint = open_folder(tmp_path)
    found = checkpoint.hash_files(stages.append)
    assert [f.name for f in found] == list(checkpoint.files)
    assert len(found) == 5
    for file in found:
        content = (tmp_path / file.name).read_bytes()
        assert file.size_bytes == len(content)
        assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert stages == ["hashing the checkpoint"]


# Index and shards compared as sets.


def test_tensor_that_the_index_names_and_the_shard_lacks(tmp_path):
    weight_map = write_safetensors_shards(tmp_path)
    write_index(tmp_path, {**weight_map, "ghost.weight": weight_map["embed.weight"]})
    expected = (
        f"^{tmp_path}: {weight_map['embed.weight']} does not agree with {SAFETENSORS_INDEX}:"
        " the index names tensors that it lacks: ghost.weight$"
    )
    with pytest.raises(CheckpointError, match=expected) as e:
        open_folder(tmp_path)
    assert e.value.remedy == "obtain index and shards from the same revision"


def test_tensor_that_the_shard_holds_and_the_index_lacks(tmp_path):
    weight_map = write_safetensors_shards(tmp_path)
    del weight_map["scalar"]
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=r"holds tensors that the index lacks: scalar$") as e:
        open_folder(tmp_path)
    assert e.value.remedy == "obtain index and shards from the same revision"


def test_tensor_in_another_shard_than_the_index_says(tmp_path):
    weight_map = write_pytorch_shards(tmp_path)
    first, second = sorted(set(weight_map.values()))
    write_index(tmp_path, {**weight_map, "scalar": first}, PYTORCH_INDEX)
    with pytest.raises(CheckpointError, match=f"{first} does not agree .* it lacks: scalar$"):
        open_folder(tmp_path)
    write_index(tmp_path, {**weight_map, "embed.weight": second}, PYTORCH_INDEX)
    with pytest.raises(CheckpointError, match=f"{first} does not agree .* lacks: embed.weight$"):
        open_folder(tmp_path)


def test_long_lists_of_tensors_are_cut(tmp_path):
    weight_map = write_safetensors_shards(tmp_path)
    ghosts = {f"ghost.{n:02}": weight_map["embed.weight"] for n in range(25)}
    write_index(tmp_path, {**weight_map, **ghosts})
    with pytest.raises(CheckpointError, match=r"ghost\.00, .*ghost\.09 and 15 more$"):
        open_folder(tmp_path)


def test_missing_shard(tmp_path):
    weight_map = write_safetensors_shards(tmp_path)
    gone = weight_map["scalar"]
    (tmp_path / gone).unlink()
    with pytest.raises(CheckpointError, match=f"names files that are not there: {gone}$") as e:
        open_folder(tmp_path)
    assert str(tmp_path) in e.value.message
    assert e.value.remedy == "obtain the missing shards"


@pytest.mark.parametrize("path", ["../evil.safetensors", "a/../../evil.safetensors", "..\\evil"])
def test_index_that_leaves_the_folder(tmp_path, path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(state(), tmp_path / "evil.safetensors")
    write_index(folder, dict.fromkeys(state(), path))
    with pytest.raises(CheckpointError, match="which is outside of the checkpoint") as e:
        open_folder(folder)
    assert repr(path) in e.value.message
    assert "tampered with" in e.value.remedy


def test_index_with_an_absolute_path(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(state(), tmp_path / "evil.safetensors")
    write_index(folder, dict.fromkeys(state(), str(tmp_path / "evil.safetensors")))
    with pytest.raises(CheckpointError, match="which is outside of the checkpoint"):
        open_folder(folder)


@pytest.mark.parametrize("file", [7, None, ["model.safetensors"], {"a": 1}])
def test_index_whose_files_are_no_names(tmp_path, file):
    write_index(tmp_path, {"embed.weight": file})
    with pytest.raises(CheckpointError, match="which is outside of the checkpoint"):
        open_folder(tmp_path)


@pytest.mark.parametrize("weight_map", [{}, [], "model.safetensors", None])
def test_index_without_a_weight_map(tmp_path, weight_map):
    write_index(tmp_path, weight_map)
    with pytest.raises(
        CheckpointError, match=f"{tmp_path}/{SAFETENSORS_INDEX}: no weight_map"
    ) as e:
        open_folder(tmp_path)
    assert e.value.remedy == "obtain the checkpoint again"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "is not JSON"), (b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[]", "no JSON")],
)
@pytest.mark.parametrize("name", [SAFETENSORS_INDEX, "config.json"])
def test_json_that_is_damaged(tmp_path, name, content, problem):
    save_file(state(), tmp_path / "model.safetensors")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{tmp_path}/{name} is .*{problem[3:]}") as e:
        open_folder(tmp_path)
    assert e.value.remedy == "obtain the file again"


# No model, or too many.


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/none: no such folder$") as e:
        open_folder(tmp_path / "none")
    assert e.value.remedy == "check the path"


def test_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=f"^{tmp_path}: no weights: neither ") as e:
        open_folder(tmp_path)
    assert e.value.remedy == "name a folder or repo that holds a model"


def test_several_safetensors_files_without_an_index(tmp_path):
    save_file(halves()[0], tmp_path / "b.safetensors")
    save_file(halves()[1], tmp_path / "a.safetensors")
    expected = f"no {SAFETENSORS_INDEX}: a.safetensors, b.safetensors$"
    with pytest.raises(CheckpointError, match=expected) as e:
        open_folder(tmp_path)
    assert e.value.remedy == "add the index, or keep one file, named model.safetensors"


def test_several_pytorch_files_without_an_index(tmp_path):
    torch.save(halves()[0], tmp_path / "b.bin")
    torch.save(halves()[1], tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"no {PYTORCH_INDEX}: a.pt, b.bin$") as e:
        open_folder(tmp_path)
    assert e.value.remedy == "add the index, or keep one file, named pytorch_model.bin"


# Damaged files.


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_empty_file_is_named(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/{name} is empty$") as e:
        open_folder(tmp_path)
    assert e.value.remedy == "obtain the file again"


@pytest.mark.parametrize("keep", [4, 40, -100, -1])
def test_truncated_safetensors_file_is_named(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    save_file(state(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=f"^{path} is no readable safetensors file: ") as e:
        open_folder(tmp_path)
    assert e.value.remedy == "it is truncated or damaged: obtain the file again"


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older format"])
@pytest.mark.parametrize("keep", [1, 4, 40, 300, -100])
def test_truncated_pytorch_file_is_named(tmp_path, keep, is_zip):
    path = tmp_path / "pytorch_model.bin"
    torch.save(state(), path, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=f"^{path} is ") as e:
        open_folder(tmp_path)
    assert e.value.remedy in (
        "it is truncated or damaged: obtain the file again",
        "obtain the checkpoint as safetensors",
    )


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        b"<!DOCTYPE html><html>404</html>",
        bytes(64),
        bytes(range(256)),
        b"\xff" * 64,
        # Damaged pickles that end in exceptions of all kinds:
        b"X",  # struct.error
        b"h\x05.",  # KeyError
        b"0.",  # IndexError
    ],
)
def test_garbage_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/{name} is "):
        open_folder(tmp_path)


def test_damaged_shard_is_named(tmp_path):
    weight_map = write_safetensors_shards(tmp_path)
    path = tmp_path / weight_map["scalar"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"^{path} is no readable safetensors file"):
        open_folder(tmp_path)


# PyTorch files that hold more than tensors.


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def save_as_zip(value, path):
    torch.save(value, path)


def save_in_older_format(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_as_plain_pickle(value, path):
    path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("save", [save_as_zip, save_in_older_format, save_as_plain_pickle])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, save, is_wrapped):
    folder, marker = tmp_path / "model", tmp_path / "marker"
    folder.mkdir()
    value = {"embed.weight": torch.ones(2), "payload": Payload(marker)}
    path = folder / "pytorch_model.bin"
    save({"model_state_dict": value} if is_wrapped else value, path)
    with pytest.raises(CheckpointError, match="edgezoo runs no code of a checkpoint") as e:
        open_folder(folder)
    assert str(path) in e.value.message
    assert e.value.remedy == "obtain the checkpoint as safetensors"
    assert not marker.exists()
    # The payload is live: whoever unpickles the file runs it.
    if save is save_as_plain_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


def test_malicious_shard_is_refused_and_not_run(tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "marker"
    folder.mkdir()
    weight_map = write_pytorch_shards(folder)
    torch.save({"scalar": Payload(marker)}, folder / weight_map["scalar"])
    with pytest.raises(CheckpointError, match="edgezoo runs no code of a checkpoint"):
        open_folder(folder)
    assert not marker.exists()


@pytest.mark.parametrize("value", [[torch.ones(2)], {}, torch.ones(2), None])
def test_pytorch_file_without_a_state_dict(tmp_path, value):
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin holds no state dict$") as e:
        open_folder(tmp_path)
    assert "torch.save(model.state_dict())" in e.value.remedy


def test_entries_that_are_no_named_tensors(tmp_path):
    torch.save({**state(), "step": 7, 3: torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no named tensors: 'step', 3$") as e:
        open_folder(tmp_path)
    assert e.value.remedy == "save the model's state dict alone"


# Tensors.


def test_unknown_tensor_names_the_nearest(tmp_path):
    save_file(state(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor embd.weight \(nearest: embed.weight\)$"):
        open_folder(tmp_path).tensor("embd.weight")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(tmp_path, dtype):
    module = torch.nn.Module()
    module.final_norm = torch.nn.Linear(4, 4, bias=False, device="meta")
    module.config = None
    save_file({"norm.weight": torch.zeros(4, 4, dtype=dtype)}, tmp_path / "model.safetensors")
    checkpoint = open_folder(tmp_path)
    assert checkpoint.tensor("norm.weight").dtype is None
    weights = map_parameters(module, checkpoint, TensorNames(final_norm="norm"))
    expected = r"holds weights that are no floats: norm.weight$"
    with pytest.raises(CheckpointError, match=expected) as e:
        check(module, weights, checkpoint)
    assert "not one that is already quantized" in e.value.remedy
