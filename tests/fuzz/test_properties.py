"""Properties of the parsers, on inputs that hypothesis makes; see `fuzz/` for those of a fuzzer."""

from __future__ import annotations

import json
import os

import pytest
import safetensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgezoo_core import manifests, texts
from edgezoo_core.errors import CheckpointError
from edgezoo_core.tensor_files import open_safetensors
from fuzz import samples, targets

#: `HYPOTHESIS_EXAMPLES=10000` for a long run.
PROPERTY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "60")),
    suppress_health_check=list(HealthCheck),
)

NUMBERS = st.one_of(st.integers(0, 40), st.integers(-(2**65), 2**65), st.sampled_from([2**60]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=6))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
DTYPES = st.sampled_from(["F32", "BF16", "F16", "I64", "U8", "BOOL", "F4", "F8_E4M3", "X9", ""])
ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": DTYPES,
            "shape": st.lists(st.one_of(st.integers(0, 3), NUMBERS), max_size=3),
            "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
        }
    ),
    VALUES,
)
HEADERS = st.dictionaries(st.one_of(st.sampled_from(["a", "b", "__metadata__"])), ENTRIES)


@st.composite
def sound_headers(draw):
    """Tensors one behind the other, as the format wants them; and then perhaps not quite."""
    header, end = {}, 0
    for name in draw(st.lists(st.text(min_size=1, max_size=3), max_size=4, unique=True)):
        dtype, width = draw(st.sampled_from([("F32", 4), ("BF16", 2), ("U8", 1), ("I64", 8)]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = width
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return header, end + draw(st.sampled_from([0, 0, 0, 1]))


def held_against_the_library(tmp_path, data):
    """Opens a file with both; edgezoo must refuse what the library refuses, and read the rest."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    try:
        ours = open_safetensors(path, path.name)
    except CheckpointError:
        ours = None
    try:
        theirs = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError:
        assert ours is None
        return None
    if ours is not None:
        assert {n: list(t.shape) for n, t in ours.items()} == {
            n: list(t["shape"]) for n, t in theirs.items()
        }
        for name, tensor in ours.items():
            stored = data[tensor.offset : tensor.offset + tensor.size_bytes]
            assert stored == bytes(theirs[name]["data"])
    return ours


@PROPERTY
@given(HEADERS, st.integers(0, 24))
@example({"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}, 0)
@example({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, 4)
def test_a_header_that_the_library_refuses_is_refused(tmp_path_factory, header, size):
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(size)
    held_against_the_library(tmp_path_factory.getbasetemp(), data)


@PROPERTY
@given(sound_headers())
def test_sound_headers_give_the_librarys_bytes(tmp_path_factory, made):
    header, size = made
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(range(256))[:size] + bytes(size)[256:]
    ours = held_against_the_library(tmp_path_factory.getbasetemp(), data)
    ends = [e["data_offsets"][1] for e in header.values()]
    assert (ours is None) == (size != max(ends, default=0))


@pytest.mark.parametrize("length", [2**60, 2**63, 2**64 - 1, 100_000_001, 9])
def test_the_length_of_a_header_is_not_believed(tmp_path, length):
    assert held_against_the_library(tmp_path, length.to_bytes(8, "little") + b"{}      ") is None


@PROPERTY
@given(VALUES)
def test_what_is_parsed_can_be_written_again(value):
    text = json.dumps(value)
    try:
        assert texts.parse_json(text) == json.loads(text)
    except ValueError:
        assert "NaN" in text or "Infinity" in text or "\\ud" in text


@PROPERTY
@given(st.sampled_from(sorted(samples.manifest())), VALUES)
def test_any_value_in_a_manifest_is_refused_or_read(field, value):
    manifest = {**samples.manifest(), field: value}
    for fault in manifests.faults(manifest):
        assert len(fault) < 400
    targets.manifest(json.dumps(manifest).encode())


@PROPERTY
@given(st.sampled_from(sorted(samples.CONFIG)), VALUES)
def test_any_value_in_a_config_is_refused_or_read(field, value):
    targets.config(json.dumps({**samples.CONFIG, field: value}).encode())


@PROPERTY
@given(st.sampled_from(["cards", "registry", "recipe"]), st.integers(0, 40), st.text(max_size=12))
def test_any_line_in_toml_is_refused_or_read(target, at, line):
    (seed,) = samples.seeds()[target]
    lines = seed.decode().split("\n")
    lines.insert(min(at, len(lines)), line)
    targets.TARGETS[target]("\n".join(lines).encode())
