"""The converted float32 file against transformers' own implementation, token by token."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from litert_torch.generative.utilities.converter import get_magic_number_for

from edgezoo_core import sources, zoo
from edgezoo_core.errors import ArtifactError
from edgezoo_core.runtime import Session
from edgezoo_core.shapes import Shapes

# conftest.CASES, by name; each is converted once.
NAMES = [
    "llama-grouped",
    "llama-multi-query-tied",
    "llama-multi-head-biased-odd",
    "gemma-multi-query",
    "gemma-grouped-odd",
    "gemma-multi-head-untied",
    "phi-multi-head",
    "phi-grouped-odd",
    "phi-multi-query-tied",
]
CAPACITY = 64
#: Largest difference allowed, relative to the largest logit.
TOLERANCE = 5e-5
SHAPES = Shapes(prefill_lengths=(4, 16), kv_cache_length=CAPACITY)


@pytest.fixture(
    scope="module",
    params=NAMES,
)
def converted(request, save_case, tmp_path_factory):
    saved = save_case(request.param)
    output = tmp_path_factory.mktemp("float")
    conversion = zoo.convert(str(saved.folder), recipe="none", shapes=SHAPES, output=output)
    return saved, conversion.artifact.path


def tokens_of(saved, count):
    vocabulary = saved.reference.config.vocab_size
    return random.Random(3).choices(range(vocabulary), k=count)


def assert_close(actual, expected, what):
    """Compares logits float32 [N, V] position by position and prints the worst."""
    difference = (torch.from_numpy(np.asarray(actual)) - expected).abs().amax(-1)
    relative = difference / expected.abs().amax(-1)
    worst = int(relative.argmax())
    print(
        f"{what}: largest difference {difference[worst]:.2e} at {worst} of {len(relative)},"
        f" {relative[worst]:.1e} of the largest logit there, allowed {TOLERANCE:.0e}"
    )
    assert relative[worst] <= TOLERANCE


def decode(session, tokens):
    """Feeds tokens one by one: logits float32 [N, V]."""
    return np.stack([session.feed([t]) for t in tokens])


def test_authored_module_equals_transformers(converted):
    saved, _ = converted
    from edgezoo_core import model, parity

    module = model.materialize(sources.obtain(str(saved.folder)).author())
    tokens = parity.sample_tokens(saved.reference.config.vocab_size)
    expected = saved.logits(tokens[0].tolist())
    assert_close(parity.run(module, tokens)[0].numpy(), expected, "authored module")


def test_every_position_up_to_the_last_slot(converted):
    saved, path = converted
    tokens = tokens_of(saved, CAPACITY)
    expected = saved.logits(tokens)
    session = Session(path)
    # 21 tokens: prefill_16 and prefill_4 in a row, then decode; 43 decode steps follow.
    assert_close(session.feed(tokens[:21])[None], expected[20:21], "after two prefill calls")
    assert_close(decode(session, tokens[21:]), expected[21:], "decode to the last slot")
    assert session.position == CAPACITY


def test_prompt_shorter_than_the_shortest_prefill(converted):
    saved, path = converted
    tokens = tokens_of(saved, 6)
    expected = saved.logits(tokens)
    session = Session(path)
    assert_close(session.feed(tokens[:3])[None], expected[2:3], "padded prefill")
    assert_close(decode(session, tokens[3:]), expected[3:], "decode behind it")


def test_greedy_answer_is_the_same(converted):
    saved, path = converted
    prompt = tokens_of(saved, 9)
    with torch.inference_mode():
        expected = saved.reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
    assert list(Session(path).generate(prompt, max_tokens=40)) == expected


def test_answer_ends_with_the_cache(converted):
    saved, path = converted
    session = Session(path)
    prompt = tokens_of(saved, CAPACITY - 4)
    # As many in all as there are slots: the last one is not fed any more.
    assert len(list(session.generate(prompt, max_tokens=50))) == 4
    assert session.position == CAPACITY - 1
    session.feed([0])
    with pytest.raises(ArtifactError, match="1 tokens after 64 do not fit"):
        session.feed([0])
    session.reset()
    assert_close(session.feed(prompt[:5])[None], saved.logits(prompt[:5])[4:], "after a reset")


@pytest.mark.parametrize(
    ("layout", "mask_as_input"), [("default", True), ("default", False), ("transposed", False)]
)
def test_other_layouts_and_masks(layout, mask_as_input, save_case, tmp_path: Path):
    saved = save_case("llama-grouped")
    shapes = Shapes((4, 16), CAPACITY, layout, mask_as_input)
    conversion = zoo.convert(str(saved.folder), recipe="none", shapes=shapes, output=tmp_path)
    inputs = {t["name"]: t for t in conversion.artifact.manifest["signatures"][-1]["inputs"]}
    assert ("mask" in inputs) == mask_as_input
    # A mask as an input comes with a number that litert-torch, too, takes for a placeholder.
    slots = get_magic_number_for(CAPACITY) if mask_as_input else CAPACITY
    key = [1, slots, 2, 32] if layout == "default" else [1, 2, slots, 32]
    assert list(inputs["kv_cache_k_0"]["shape"]) == key
    tokens = tokens_of(saved, CAPACITY)
    expected = saved.logits(tokens)
    session = Session(conversion.artifact.path)
    assert session.capacity == CAPACITY
    assert_close(
        session.feed(tokens[:23])[None], expected[22:23], "padded prefill after a full one"
    )
    assert_close(decode(session, tokens[23:]), expected[23:], "decode to the last slot")


@pytest.mark.parametrize(
    ("family", "config"),
    [
        pytest.param(
            "tinyllama",
            {
                "hidden_size": 2048,
                "intermediate_size": 5632,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
            },
            id="tinyllama-1.1b",
        ),
        pytest.param(
            "gemma",
            {
                "hidden_size": 2048,
                "intermediate_size": 16384,
                "num_attention_heads": 8,
                "num_key_value_heads": 1,
                "head_dim": 256,
            },
            id="gemma-2b",
        ),
        pytest.param(
            "phi2",
            {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.4,
                },
            },
            id="phi-2",
        ),
    ],
)
def test_two_layers_at_the_real_widths(family, config, save_model, tmp_path: Path):
    saved = save_model(family, torch.bfloat16, **config, vocab_size=16384)
    conversion = zoo.convert(str(saved.folder), recipe="none", shapes=SHAPES, output=tmp_path)
    tokens = tokens_of(saved, 54)
    expected = saved.logits(tokens)
    session = Session(conversion.artifact.path)
    assert_close(session.feed(tokens[:21])[None], expected[20:21], "prefill")
    assert_close(decode(session, tokens[21:]), expected[21:], "decode")
