"""Files of one family for benchmarks/decode.py: random weights, real widths, full vocabulary.

    python benchmarks/families.py tinyllama-1.1b FOLDER --layers 8 --llama-cpp llama.cpp

Writes base.tflite and base.litertlm with the defaults, default.litertlm with the default KV layout,
builtin.litertlm with the mask built in, exported.litertlm as litert-torch's export_hf makes it with
its own defaults, and q8.gguf with llama.cpp's converter (a checkout of its source). All have the
same weights, 8 bits each, prefill 8 and 128 and a KV cache of 1280.

Memory: some 25 bytes per parameter for export_hf, so choose the number of layers by it, or leave it
out with --no-export.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import to_gguf
from real_widths import CONFIGS

PREFILL, SLOTS = (8, 128), 1280


def main() -> None:
    """Writes the files, each in a process of its own so that none keeps another's memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=CONFIGS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--llama-cpp", type=Path, help="a checkout, for q8.gguf")
    parser.add_argument("--no-export", action="store_true", help="leave out export_hf")
    parser.add_argument("--only", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        STEPS[options.only](options)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        wanted = {"exported": not options.no_export, "gguf": options.llama_cpp is not None}
        if wanted.get(step, True):
            print(f"== {step}", file=sys.stderr)
            subprocess.run([sys.executable, *sys.argv, "--only", step], check=True)


def save_source(options: argparse.Namespace) -> None:
    """Saves the checkpoint, and a tokenizer that names every id."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.for_model(**CONFIGS[options.family], num_hidden_layers=options.layers)
    build: Any = AutoModelForCausalLM.from_config
    build(config, dtype=torch.bfloat16).save_pretrained(options.folder / "source")
    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"<{i}>" for i in range(len(names), config.vocab_size)]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    build_tokenizer: Any = PreTrainedTokenizerFast
    saved = build_tokenizer(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    saved.save_pretrained(options.folder / "source")


def convert(options: argparse.Namespace) -> None:
    """Converts with edgezoo: the defaults, the other layout, the other form of mask."""
    from edgezoo_core import zoo
    from edgezoo_core.shapes import KvLayout, Shapes

    variants: dict[str, tuple[KvLayout, bool]] = {
        "base": ("transposed", True),
        "default": ("default", True),
        "builtin": ("transposed", False),
    }
    for name, (layout, mask) in variants.items():
        zoo.convert(
            str(options.folder / "source"),
            shapes=Shapes(PREFILL, SLOTS, layout, mask),
            output=options.folder / f"{name}.tflite",
            force=True,
        )


def export(options: argparse.Namespace) -> None:
    """Converts with export_hf."""
    from litert_torch.generative.export_hf import export as export_hf

    export_hf.export(
        model=str(options.folder / "source"),
        output_dir=str(options.folder / "export"),
        prefill_lengths=list(PREFILL),
        cache_length=SLOTS,
    )
    shutil.move(options.folder / "export" / "model.litertlm", options.folder / "exported.litertlm")
    shutil.rmtree(options.folder / "export")


def write_gguf(options: argparse.Namespace) -> None:
    """Converts with llama.cpp's own script, without a vocabulary, which it has no form for."""
    to_gguf.write(options.llama_cpp, options.folder / "source", options.folder / "q8.gguf", "q8_0")


STEPS = {"source": save_source, "converted": convert, "exported": export, "gguf": write_gguf}

if __name__ == "__main__":
    main()
