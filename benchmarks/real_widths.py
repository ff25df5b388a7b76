"""Two layers of every model at its real widths and full vocabulary, against transformers.

    python benchmarks/real_widths.py [MODEL ...]

Random weights; the converted float32 file reads 54 random tokens, prefill and decode, and its
logits are held against transformers' own implementation. Gemma 7B takes some 20 GB of memory.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgezoo_core import zoo
from edgezoo_core.runtime import Session
from edgezoo_core.shapes import Shapes

GEMMA = {"model_type": "gemma", "vocab_size": 256000, "head_dim": 256}
PHI_ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4}
CONFIGS: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "gemma-2b": {
        **GEMMA,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
    },
    "gemma-7b": {
        **GEMMA,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "phi-2": {
        "model_type": "phi",
        "vocab_size": 51200,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_attention_heads": 32,
        "rope_parameters": PHI_ROPE,
    },
}


def compare(fields: dict[str, Any], folder: Path) -> tuple[float, float, int]:
    """Converts a random two-layer model.

    Returns:
        Largest difference of a logit, largest logit, and positions at which both choose the same.
    """
    torch.manual_seed(0)
    config = AutoConfig.for_model(**fields, num_hidden_layers=2)
    build: Any = AutoModelForCausalLM.from_config
    reference = build(config, dtype=torch.float32).eval()
    tokens = random.Random(1).choices(range(config.vocab_size), k=54)
    reference.save_pretrained(folder / "source")
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()[20:]
    del reference
    gc.collect()
    shapes = Shapes(prefill_lengths=(4, 16), kv_cache_length=64)
    conversion = zoo.convert(
        str(folder / "source"), recipe="none", shapes=shapes, output=folder / "converted"
    )
    session = Session(conversion.artifact.path)
    first = session.feed(tokens[:21])
    actual = np.stack([first, *(session.feed([t]) for t in tokens[21:])])
    same = int((actual.argmax(-1) == expected.argmax(-1)).sum())
    return float(np.abs(actual - expected).max()), float(np.abs(expected).max()), same


def main() -> None:
    """Runs the models named on the command line, or all."""
    for name in sys.argv[1:] or CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            largest, scale, same = compare(CONFIGS[name], Path(folder))
        print(f"{name:<16} largest difference {largest:.2e} of {scale:.3g}, same choice {same}/34")


if __name__ == "__main__":
    main()
