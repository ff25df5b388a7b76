"""Small sound files that only other people's libraries write."""

from __future__ import annotations

import io


def pytorch_files() -> list[bytes]:
    """Returns a state dict in torch's zip format, and in its older one."""
    import torch

    files = []
    for is_zip in (True, False):
        file = io.BytesIO()
        state = {"a": torch.zeros(2, 2), "b": torch.zeros(3, dtype=torch.bfloat16)}
        torch.save(state, file, _use_new_zipfile_serialization=is_zip)
        files.append(file.getvalue())
    return files


def sentencepiece_files() -> list[bytes]:
    """Returns a SentencePiece model of a few pieces."""
    import sentencepiece

    file = io.BytesIO()
    text = ["Hello there", "low lower lowest", "a b c d e f g h i j k l m n o p"] * 4
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=file,
        vocab_size=40,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return [file.getvalue()]
