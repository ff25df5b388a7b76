"""A tiny checkpoint, another with other weights of the same sizes, and what comes out of both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import Bench, hashes


def _save(folder: Path, seed: int) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=300,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(["</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A model and its bundle, and the cache that making them filled."""
    folder = tmp_path_factory.mktemp("faults")
    bench = Bench(folder, _save(folder / "small", 0), {})
    done = bench.run(*bench.convert())
    assert done.code == 0, done.err
    bench.expected = hashes(bench.out)
    return bench


@pytest.fixture(scope="session")
def tuned(finished: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A fine-tune of it: files of the same names and sizes, with other bytes."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(finished.cache, folder / "cache")
    bench = Bench(folder, _save(folder / "tuned", 1), {})
    done = bench.run(*bench.convert())
    assert done.code == 0, done.err
    bench.expected = hashes(bench.out)
    for name in ("m.tflite", "m.litertlm"):
        assert (bench.out / name).stat().st_size == (finished.out / name).stat().st_size
        assert bench.expected[name] != finished.expected[name]
    return bench


@pytest.fixture
def make_bench(finished: Bench, tmp_path: Path) -> Callable[..., Bench]:
    """Makes a place for a case; its cache holds the trace and the skeleton, unless told."""
    count = 0

    def make(*kinds: str) -> Bench:
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        for kind in kinds:
            shutil.copytree(finished.cache / kind, folder / "cache" / kind)
        (folder / "cache").mkdir(parents=True, exist_ok=True)
        return Bench(folder, finished.checkpoint, finished.expected)

    return make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """A place with a warm cache and no output."""
    return make_bench("trace", "skeleton")
