from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from edgezoo_core.errors import (
    LONGEST_LIST,
    ConversionError,
    EdgezooError,
    PluginError,
    listing,
    nearest,
)
from edgezoo_core.shapes import SignatureOptions
from edgezoo_core.types import Model, WeightFormat

INT8 = WeightFormat("int8", 8, is_float=False, is_dynamic=True)
INT4_BLOCK32 = WeightFormat("int4_block32", 4, is_float=False, is_dynamic=True, block_size=32)
FP16 = WeightFormat("fp16", 16, is_float=True, is_dynamic=False)


def test_error_carries_message_and_remedy():
    error = PluginError("it broke", remedy="mend it")
    assert (str(error), error.message, error.remedy) == ("it broke", "it broke", "mend it")


def test_error_demands_a_remedy():
    with pytest.raises(TypeError, match="remedy"):
        EdgezooError("it broke")


def test_errors_are_no_builtin_lookups_or_values():
    assert not issubclass(EdgezooError, (LookupError, ValueError))


def test_listing_is_cut_with_a_count():
    names = [f"n{i}" for i in range(LONGEST_LIST + 2)]
    assert listing(names[:LONGEST_LIST]) == ", ".join(names[:LONGEST_LIST])
    assert listing(names) == f"{', '.join(names[:LONGEST_LIST])} and 2 more"
    assert listing(iter([])) == ""


def test_nearest_name():
    assert nearest("gema-2b", ["phi-2", "gemma-2b"]) == "gemma-2b"
    assert nearest("qqqqq", ["phi-2", "gemma-2b"]) is None


def test_values_are_frozen():
    model = Model("fake", None, "fake-org/fake@abc")
    with pytest.raises(FrozenInstanceError):
        model.family = "other"


def test_prefill_lengths_are_sorted_and_unique():
    assert SignatureOptions(prefill_lengths=(128, 8, 128)).prefill_lengths == (8, 128)


@pytest.mark.parametrize("lengths", [(), (0, 8), (-1,)])
def test_prefill_lengths_must_be_positive(lengths):
    with pytest.raises(ConversionError, match="one or more positive numbers") as e:
        SignatureOptions(prefill_lengths=lengths)
    assert "--prefill 8" in e.value.remedy


def test_kv_cache_must_hold_the_longest_prefill_and_one_more():
    assert SignatureOptions((8, 128), kv_cache_length=129).kv_cache_length == 129
    with pytest.raises(ConversionError, match="128 slots cannot hold a prefill of 128") as e:
        SignatureOptions((8, 128), kv_cache_length=128)
    assert "--kv-cache 129" in e.value.remedy


def test_unknown_kv_layout():
    with pytest.raises(ConversionError, match="unknown KV layout 'sideways'") as e:
        SignatureOptions(kv_layout="sideways")
    assert "--kv-layout transposed" in e.value.remedy


@pytest.mark.parametrize(
    ("weight_format", "expected"),
    [
        (INT8, 16 * 64 + 16 * 4),  # one float32 scale per output channel
        (INT4_BLOCK32, 16 * 64 // 2 + 16 * 2 * 2),  # one float16 scale per block
        (FP16, 16 * 64 * 2),
    ],
)
def test_size_of_a_weight_counts_its_scales(weight_format, expected):
    assert weight_format.size_bytes((16, 64)) == expected
