"""Where tensors are in their files, and the safetensors header held against the library."""

from __future__ import annotations

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edgezoo_core.checkpoint import open_folder
from edgezoo_core.errors import CheckpointError
from edgezoo_core.pytorch_files import open_pytorch
from edgezoo_core.tensor_files import open_safetensors
from edgezoo_core.types import RowSlice

#: dtype of the format -> bits of an element, what a tensor of it reports as dtype.
DTYPES = {
    "BOOL": (8, None),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "U8": (8, None),
    "I8": (8, None),
    "F8_E5M2": (8, None),
    "F8_E4M3": (8, None),
    "F8_E8M0": (8, None),
    "F8_E4M3FNUZ": (8, None),
    "F8_E5M2FNUZ": (8, None),
    "I16": (16, None),
    "U16": (16, None),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "I32": (32, None),
    "U32": (32, None),
    "F32": (32, "float32"),
    "C64": (64, None),
    "F64": (64, "float64"),
    "I64": (64, None),
    "U64": (64, None),
}


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **others):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **others}


def write(path, header, data_bytes=8, length=None):
    """Writes a file with this header: a value, or its text or bytes."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    length = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", length) + header + bytes(data_bytes))
    return path


def raw(stored, folder):
    """The bytes of a tensor, taken from its file without any library."""
    with (folder / stored.file).open("rb") as f:
        f.seek(stored.offset)
        return f.read(stored.size_bytes)


def bytes_of(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# safetensors: what the library accepts.


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (dtype, shape)
        for dtype, (bits, _) in DTYPES.items()
        for shape in [(4,), (2, 4), (0,), (3, 0), ()]
        if shape or bits >= 8  # the format holds no part of a byte
    ],
)
def test_every_dtype_and_shape_is_parsed_as_by_the_library(tmp_path, dtype, shape):
    bits, name = DTYPES[dtype]
    size_bits = bits * int(np.prod(shape, dtype=np.int64))
    path = write(
        tmp_path / "model.safetensors",
        {
            "behind": entry("U8", [3], [size_bits // 8, size_bits // 8 + 3]),
            "it": entry(dtype, shape, [0, size_bits // 8]),
        },
        size_bits // 8 + 3,
    )
    found = open_safetensors(path, path.name)
    with safe_open(path, framework="pt") as handle:
        assert list(found) == handle.keys()
        for key, stored in found.items():
            assert list(stored.shape) == handle.get_slice(key).get_shape()
    assert found["it"].dtype == name
    assert found["it"].size_bytes == size_bits // 8
    assert found["behind"].offset == path.stat().st_size - 3


def test_offsets_lead_to_the_tensors(tmp_path):
    tensors = {
        "double": torch.randn(3, 2, dtype=torch.float64),
        "single": torch.randn(5),
        "half": torch.randn(3, 3).half(),
        "brain": torch.randn(7, 1).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "byte": torch.arange(9, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_folder(tmp_path)
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert raw(checkpoint.tensor(name), tmp_path) == bytes_of(tensor), name
        assert torch.equal(checkpoint.tensor(name).read(), tensor)
    assert checkpoint.tensor("double").slices == (RowSlice("double", 0, 3),)
    assert checkpoint.tensor("scalar").slices == (RowSlice("scalar", 0, 1),)
    assert checkpoint.tensor("empty").slices == (RowSlice("empty", 0, 0),)


ACCEPTED = {
    "no tensors": ({}, 0),
    "metadata alone": ({"__metadata__": {"format": "pt"}}, 0),
    "metadata of null": ({"__metadata__": None, "a": entry()}, 8),
    "further keys": ({"a": entry(note=[1, {"x": None}])}, 8),
    "any order": ({"a": entry(offsets=(8, 16)), "b": entry()}, 16),
    "empty between": (
        {"c": entry(offsets=(8, 16)), "a": entry(), "b": entry(shape=[0], offsets=(8, 8))},
        16,
    ),
    "empty name": ({"": entry()}, 8),
    "surrogate pair": ({"\U0001f600": entry()}, 8),
    "white space": (" \n\t" + json.dumps({"a": entry()}) + "  ", 8),
    "zero before a huge product": ({"a": entry(shape=[0, 1 << 33, 1 << 33], offsets=(0, 0))}, 0),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_the_library_accepts_is_accepted(tmp_path, case):
    header, data_bytes = ACCEPTED[case]
    path = write(tmp_path / "model.safetensors", header, data_bytes)
    with safe_open(path, framework="pt") as handle:
        expected = {k: handle.get_slice(k).get_shape() for k in handle.keys()}  # noqa: SIM118
    found = open_safetensors(path, path.name)
    assert {k: list(t.shape) for k, t in found.items()} == expected


# safetensors: what it refuses.

VALID = json.dumps({"a": entry()})

REFUSED = {
    # header, bytes of data, and, where it is not the header's, the length that the file states
    "longer than allowed": (VALID, 8, 100_000_001),
    "longer than the file": (VALID, 8, 100_000_000),
    "longer than a signed number": (VALID, 8, 1 << 63),
    "longer by one than the file": (VALID, 8, len(VALID) + 9),
    "shorter than it is": (VALID, 8, len(VALID) - 1),
    "no header": ("", 8),
    "list": ([], 0),
    "null": ("null", 0),
    "string": ('"a"', 0),
    "no UTF-8": (b'{"\xff": {}}', 0),
    "UTF-16": ("{}".encode("utf-16"), 0),
    "byte order mark": (b"\xef\xbb\xbf{}", 0),
    "half": (VALID[: len(VALID) // 2], 8),
    "zeros behind": (VALID + "\0\0", 8),
    "not a number": (VALID.replace("[0, 8]", "[0, NaN]"), 8),
    "constant in a further key": (VALID.replace('"dtype"', '"x": Infinity, "dtype"'), 8),
    "line break in a name": ('{"a\n": ' + json.dumps(entry()) + "}", 8),
    "half of a surrogate pair": ('{"\\ud800": ' + json.dumps(entry()) + "}", 8),
    "deeper than any parser goes": ("[" * 100_000, 0),
    "number of 5000 digits": (VALID.replace("[2]", f"[{'9' * 5000}]"), 8),
    "dtype twice": (VALID.replace('"dtype"', '"dtype": "F32", "dtype"'), 8),
    "metadata twice": ('{"__metadata__": {}, "__metadata__": {}}', 0),
    "metadata of a number": ({"__metadata__": {"a": 1}, "a": entry()}, 8),
    "metadata as a list": ({"__metadata__": [], "a": entry()}, 8),
    "entry of null": ({"a": None}, 8),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, 4),
    "no data_offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8),
    "unknown dtype": ({"a": entry("F33")}, 8),
    "unknown dtype, no data": ({"a": entry("F33", [0], (0, 0))}, 0),
    "dtype in lower case": ({"a": entry("f32")}, 8),
    "dtype of null": ({"a": entry(None)}, 8),
    "dtype as a list": ({"a": entry(["F32"])}, 8),
    "shape as a string": ({"a": entry(shape="2")}, 8),
    "shape of a string": ({"a": entry(shape=["2"])}, 8),
    "shape of a float": ({"a": entry(shape=[2.0])}, 8),
    "shape of a truth": ({"a": entry("U8", [True], (0, 1))}, 1),
    "negative shape": ({"a": entry(shape=[-2])}, 8),
    "two negatives": ({"a": entry(shape=[-2, -1])}, 8),
    "three offsets": ({"a": entry(offsets=(0, 8, 8))}, 8),
    "one offset": ({"a": entry(offsets=(8,))}, 8),
    "offset of a float": ({"a": entry(offsets=(0, 8.0))}, 8),
    "negative offset": ({"a": entry(offsets=(-8, 0))}, 8),
    "end before begin": ({"a": entry(offsets=(8, 0))}, 8),
    "too few bytes": ({"a": entry(offsets=(0, 4))}, 4),
    "too many bytes": ({"a": entry(offsets=(0, 12))}, 12),
    "hole": ({"a": entry(), "b": entry(offsets=(12, 20))}, 20),
    "hole at the start": ({"a": entry(offsets=(4, 12))}, 12),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, 12),
    "the same bytes twice": ({"a": entry(), "b": entry()}, 8),
    "empty inside of another": ({"a": entry(), "b": entry(shape=[0], offsets=(4, 4))}, 8),
    "data behind": ({"a": entry()}, 9),
    "data behind nothing": ({}, 1),
    "data cut": ({"a": entry()}, 7),
    "far outside": ({"a": entry(shape=[1 << 40], offsets=(0, 1 << 42))}, 8),
    "half a byte": ({"a": entry("F4", [3], (0, 2))}, 2),
    "huge product": ({"a": entry(shape=[1 << 33, 1 << 33, 0], offsets=(0, 0))}, 0),
    "huge product of one": ({"a": entry(shape=[1 << 61], offsets=(0, 1 << 63))}, 8),
    "huge dimension": ({"a": entry(shape=[0, 1 << 64], offsets=(0, 0))}, 0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_library_refuses_is_refused(tmp_path, case):
    path = write(tmp_path / "model.safetensors", *REFUSED[case])
    with pytest.raises((SafetensorError, OSError)):
        safe_open(path, framework="pt")
    with pytest.raises(CheckpointError, match=f"^{path} is no readable safetensors file: .") as e:
        open_safetensors(path, path.name)
    assert e.value.remedy == "it is truncated or damaged: obtain the file again"
    assert len(e.value.message) < len(str(path)) + 300


def test_every_truncation_is_refused(tmp_path):
    path = write(tmp_path / "model.safetensors", VALID)
    content = path.read_bytes()
    for keep in range(1, len(content)):
        path.write_bytes(content[:keep])
        with pytest.raises(CheckpointError, match="is no readable safetensors file: "):
            open_safetensors(path, path.name)


@pytest.mark.parametrize(
    "header",
    [
        '{"a": %(entry)s, "a": %(entry)s}',
        '{"__metadata__": {"x": "y", "x": "z"}, "a": %(entry)s}',
        '{"a": ["F32", [2], [0, 8]]}',
    ],
    ids=["tensor twice", "metadata's key twice", "entry as a list"],
)
def test_what_the_library_lets_pass_is_refused_where_it_has_two_readings(tmp_path, header):
    path = write(tmp_path / "model.safetensors", header % {"entry": json.dumps(entry())})
    with safe_open(path, framework="pt") as handle:
        assert handle.keys() == ["a"]
    with pytest.raises(CheckpointError, match="is no readable safetensors file: "):
        open_safetensors(path, path.name)


def test_file_that_is_cut_after_it_was_opened_is_named(tmp_path):
    path = write(tmp_path / "model.safetensors", VALID)
    stored = open_safetensors(path, path.name)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"^{path} is no readable safetensors file: "):
        stored.read()


# PyTorch.


def state():
    base = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    brain = base[:6].bfloat16()
    return {
        "whole": base,
        "view": base[3:5],
        "flat": base.view(-1)[7:9],
        "half": base.half(),
        "brain": brain,
        "tied": brain,
        "double": base.double(),
        "parameter": torch.nn.Parameter(base[:2].clone()),
        "scalar": torch.tensor(2.5),
        "long": torch.arange(5),
    }


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_offsets_in_a_zip_lead_to_the_tensors(tmp_path, is_wrapped):
    tensors = state()
    value = {"step": torch.zeros(3), "model_state_dict": tensors} if is_wrapped else tensors
    torch.save(value, tmp_path / "pytorch_model.bin")
    checkpoint = open_folder(tmp_path)
    for name, tensor in tensors.items():
        stored = checkpoint.tensor(name)
        assert raw(stored, tmp_path) == bytes_of(tensor), name
        assert torch.equal(stored.read(), tensor)
    for name in ("whole", "view", "half", "double"):
        stored = checkpoint.tensor(name)
        path = tmp_path / stored.file
        count = tensors[name].numel()
        found = np.fromfile(path, stored.dtype, count=count, offset=stored.offset)
        assert np.array_equal(found, tensors[name].numpy().reshape(-1)), name
    assert checkpoint.tensor("tied").offset == checkpoint.tensor("brain").offset
    assert checkpoint.tensor("view").offset == checkpoint.tensor("whole").offset + 3 * 4 * 4
    assert checkpoint.tensor("long").dtype is None


def test_tensor_that_is_in_pieces_has_no_offset(tmp_path):
    base = torch.randn(6, 4)
    tensors = {
        "transposed": base.t(),
        "columns": base[:, 1:3],
        "expanded": base[:1].expand(3, 4),
        "sparse": base.to_sparse(),
        "negated": torch._neg_view(base),
        "whole": base,
    }
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    checkpoint = open_folder(tmp_path)
    located = {n for n, t in checkpoint.tensors.items() if t.offset is not None}
    assert located == {"whole"}
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensor(name).read().to_dense(), tensor.to_dense()), name


def test_older_format_has_no_offsets(tmp_path):
    torch.save(state(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    checkpoint = open_folder(tmp_path)
    for name, tensor in state().items():
        assert checkpoint.tensor(name).offset is None
        assert torch.equal(checkpoint.tensor(name).read(), tensor)


def repack(source, target, compression, *, is_reversed=False, pad=0, without=(), **edits):
    """Writes a zip file anew, as another tool would."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        names = [n for n in old.namelist() if n.rpartition("/")[2] not in without]
        records = [n for n in names if "/data/" in n]
        others = [n for n in names if "/data/" not in n]
        for name in others + (records[::-1] if is_reversed else records):
            content = edits.get(name.rpartition("/")[2], old.read(name))
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<HH", 0x4246, pad) + bytes(pad) if pad else b""
            new.writestr(info, content, compression)


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("pad", [0, 60])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_repacked_file_gives_the_tensors_and_no_wrong_offset(
    tmp_path, is_reversed, pad, compression
):
    # All of a size, so that one could be taken for another.
    tensors = {f"t{i}": torch.full((64,), float(i)) for i in range(4)}
    torch.save(tensors, tmp_path / "original")
    path = tmp_path / "pytorch_model.bin"
    repack(tmp_path / "original", path, compression, is_reversed=is_reversed, pad=pad)
    for name, stored in open_pytorch(path, path.name).items():
        assert torch.equal(stored.read(), tensors[name])
        if stored.offset is not None:
            assert raw(stored, tmp_path) == bytes_of(tensors[name])
        assert compression == zipfile.ZIP_STORED or stored.offset is None


@pytest.mark.parametrize("is_reversed", [False, True])
def test_file_of_an_older_torch_has_offsets(tmp_path, is_reversed):
    torch.save(state(), tmp_path / "original")
    path = tmp_path / "pytorch_model.bin"
    without = (".format_version", ".storage_alignment")
    options = {"is_reversed": is_reversed, "pad": 60, "without": without}
    repack(tmp_path / "original", path, zipfile.ZIP_STORED, **options)
    for name, stored in open_pytorch(path, path.name).items():
        assert raw(stored, tmp_path) == bytes_of(state()[name]), name


# 992 numbers and the record's header and padding make up a page of 4096 bytes.
@pytest.mark.parametrize("count", [64, 992])
def test_offsets_that_torch_computes_for_another_order_are_not_believed(tmp_path, count):
    tensors = {f"t{i}": torch.full((count,), float(i)) for i in range(4)}
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors, path)
    content = path.read_bytes()
    for old, new in ((b"/data/1", b"/data/x"), (b"/data/2", b"/data/1"), (b"/data/x", b"/data/2")):
        content = content.replace(old, new)
    path.write_bytes(content)
    found = open_pytorch(path, path.name)
    assert torch.equal(found["t1"].read(), tensors["t2"]), "a record goes by its name"
    assert {stored.offset for stored in found.values()} == {None}


def test_tensor_longer_than_its_record_has_no_offset(tmp_path):
    torch.save({"a": torch.ones(64), "b": torch.ones(64)}, tmp_path / "original")
    path = tmp_path / "pytorch_model.bin"
    edits = {"without": (".format_version",), "0": bytes(4 * 63)}
    repack(tmp_path / "original", path, zipfile.ZIP_STORED, **edits)
    found = open_pytorch(path, path.name)
    assert found["a"].offset is None
    assert raw(found["b"], tmp_path) == bytes_of(torch.ones(64))


def test_big_endian_file_has_no_offsets(tmp_path):
    tensor = torch.randn(3, 4)
    torch.save({"a": tensor}, tmp_path / "original")
    swapped = tensor.numpy().byteswap().tobytes()
    edits = {"byteorder": b"big", "0": swapped}
    path = tmp_path / "pytorch_model.bin"
    repack(tmp_path / "original", path, zipfile.ZIP_STORED, **edits)
    stored = open_pytorch(path, path.name)["a"]
    assert stored.offset is None
    assert torch.equal(stored.read(), tensor)
