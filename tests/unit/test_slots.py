"""Slots of a KV cache, and what LiteRT-LM makes of them."""

from __future__ import annotations

import pytest

from edgezoo_core import slots


@pytest.mark.parametrize(
    ("named", "expected"),
    # GetDefaultTargetNumber of LiteRT-LM's magic_number_configs_helper.cc, by hand.
    [(7, 7), (11, 8), (13, 8), (127, 64), (131, 128), (257, 256), (509, 256), (1283, 1280)],
)
def test_a_prime_is_made_a_round_number(named, expected):
    assert slots.used(named) == expected


@pytest.mark.parametrize("named", [1, 2, 9, 10, 12, 121, 256, 1280, 1281, 4096])
def test_no_other_number_is_changed(named):
    assert slots.used(named) == named


@pytest.mark.parametrize("capacity", [8, 32, 128, 256, 512, 1280, 2048, 4096, 8192])
def test_a_file_can_be_given_fewer_slots(capacity):
    named = slots.adjustable(capacity, ())
    assert named > capacity
    assert slots.used(named) == capacity


@pytest.mark.parametrize("capacity", [1, 5, 20, 160, 320, 1000, 1279, 1283])
def test_a_length_that_the_runtime_would_not_keep_stays(capacity):
    assert slots.adjustable(capacity, ()) == capacity


def test_a_dimension_of_the_model_is_no_number_of_slots():
    assert slots.adjustable(256, ()) == 257
    assert slots.adjustable(256, {257, 263}) == 269
