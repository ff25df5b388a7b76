"""The tokenizer in a bundle, as LiteRT-LM uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgezoo_core.bundle import sections
from edgezoo_core.bundle.vocabulary import ChatTemplate, Form
from edgezoo_core.errors import ArtifactError


class Bundled:
    """A tokenizer section; a `Vocabulary` that knows of no chat template.

    Attributes:
        size: One more than its largest id.

    Args:
        kind: Of the section.
        content: Its bytes; of a Hugging Face tokenizer the JSON text.

    Raises:
        ArtifactError: It cannot be loaded.
    """

    start_token: int | None = None
    end_token: int | None = None
    chat: ChatTemplate | None = None

    def __init__(self, kind: str, content: bytes) -> None:
        self.form: Form = "sentencepiece" if kind == sections.SENTENCEPIECE else "huggingface"
        self.content = content
        self.added: Mapping[str, int] = {}
        load = _sentencepiece if self.form == "sentencepiece" else _huggingface
        with _told("loaded"):
            self._tokenizer = load(content)
            self.size = self._count()
        # Some are only found out once they are used.
        self.encode("a b")
        _ = self.prepended

    @property
    def prepended(self) -> list[int] | None:
        """Ids that its own post-processor puts before a text; None if it has no such."""
        if self.form == "sentencepiece" or self._tokenizer.post_processor is None:
            return None
        with _told("used"):
            ids = self._tokenizer.encode("x").ids
        bare = self.encode("x")
        return next((ids[:i] for i in range(len(ids)) if ids[i : i + len(bare)] == bare), None)

    def encode(self, text: str) -> list[int]:
        """Returns a text's ids; LiteRT-LM adds a start token by itself."""
        with _told("used"):
            if self.form == "sentencepiece":
                return list(self._tokenizer.encode(text))
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def ids_of(self, union: Any) -> list[int]:
        """Returns the ids that LiteRT-LM reads out of a metadata's `TokenUnion`."""
        if union.WhichOneof("token_union") != "token_str":
            return list(union.token_ids.ids)
        token = self._id_of(union.token_str)
        return self.encode(union.token_str) if token is None else [token]

    def text_of(self, token: int) -> str:
        """Returns how a token is written; "" if there is no such."""
        if not 0 <= token < self.size:
            return ""
        with _told("used"):
            if self.form == "sentencepiece":
                return str(self._tokenizer.id_to_piece(token))
            return self._tokenizer.id_to_token(token) or ""

    def file(self, scratch: Path) -> Path:
        """Writes it."""
        path = scratch / ("tokenizer.model" if self.form == "sentencepiece" else "tokenizer.json")
        path.write_bytes(self.content)
        return path

    def _count(self) -> int:
        if self.form == "sentencepiece":
            return int(self._tokenizer.vocab_size())
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def _id_of(self, text: str) -> int | None:
        with _told("used"):
            if self.form == "huggingface":
                return self._tokenizer.token_to_id(text)  # type: ignore[no-any-return]
            token = self._tokenizer.piece_to_id(text)
            return None if self._tokenizer.is_unknown(token) else int(token)


@contextmanager
def _told(done: str) -> Iterator[None]:
    """Says of whatever a library raises that the tokenizer cannot be used.

    tokenizers raises nothing narrower than `Exception`; and where its Rust panics, what comes out
    is not even that.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:
        raise ArtifactError(
            f"the tokenizer cannot be {done}: {str(e)[:200]}", remedy="bundle the model again"
        ) from e


def _sentencepiece(content: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=content)


def _huggingface(content: bytes) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer(content)
