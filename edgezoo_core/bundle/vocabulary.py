"""The source's tokenizer, and the form of it that a bundle carries."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from edgezoo_core import sandbox
from edgezoo_core import tokenizer as tokenizers
from edgezoo_core.bundle.turns import Conversation, RefusedError
from edgezoo_core.errors import ArtifactError

Form = Literal["sentencepiece", "huggingface"]

_REMEDY = "pass --tokenizer with a folder or hub repo that holds a sound one"
#: Ordinary text, digits, newlines, blanks, other scripts, bytes that no vocabulary has whole.
PROBES = (
    "The quick brown fox jumps over the lazy dog. It isn't 1,234.50 or 007!",
    " leading and trailing  double   triple blanks \t tab ",
    "two\nlines\n\nand\r\nthree\n\n\n",
    "na\u00efve \u4f60\u597d \u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d",
    "\U0001f600\U0001f468\u200d\U0001f469 \ufb01 \u2460 e\u0301",
    "for (int i = 0; i < n; ++i) { a[i] += b->c; } // <tag attr='x'>",
    "\u2581underline \u00a0 no-break",
)


class Vocabulary(Protocol):
    """What a bundle takes from a tokenizer.

    Attributes:
        form: As which section the tokenizer is stored.
        size: Number of ids that it knows.
        start_token: The id that it puts before every text; None if it puts none.
        end_token: The id that ends a text, by the tokenizer's own account.
        added: Ids of the tokens that are matched before the text is split, by their text.
        chat: The chat template, if there is one.
    """

    form: Form
    size: int
    start_token: int | None
    end_token: int | None
    added: Mapping[str, int]
    chat: ChatTemplate | None

    def file(self, scratch: Path) -> Path:
        """Returns the file of the tokenizer's section, made in `scratch` if need be."""


def load(folder: Path) -> Vocabulary:
    """Loads the tokenizer in a folder. No code of the checkpoint is run.

    Raises:
        ArtifactError: There is none, or it cannot be read.
    """
    try:
        if (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file():
            return _HuggingFace(folder)
        if (folder / "tokenizer.model").is_file():
            return _SentencePiece(folder / "tokenizer.model")
    except (ArtifactError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # any exception at all, and a panic of Rust is not even that
        raise ArtifactError(
            f"the tokenizer in {folder} cannot be loaded: {str(e)[:500]}", remedy=_REMEDY
        ) from e
    raise ArtifactError(
        f"no tokenizer in {folder}", remedy="pass --tokenizer with a folder that holds one"
    )


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template, rendered by transformers in its sandbox; see `turns.Chat`."""

    tokenizer: Any
    template: str
    tokens: Mapping[str, str]

    _BOS = "\ue000"  # of the private use area: in no template

    @property
    def added(self) -> Collection[str]:
        """See `turns.Chat`."""
        return [str(token) for token in self.tokenizer.added_tokens_decoder.values()]

    @cached_property
    def begins_with_start_token(self) -> bool:
        """Whether the template itself puts the start token first."""
        try:
            text = self._render([{"role": "user", "content": "Hello"}], is_asked=True)
        except RefusedError:
            return False
        return text.startswith(self._BOS)

    def render(self, conversation: Conversation, *, is_asked: bool) -> str:
        """See `turns.Chat`."""
        text = self._render(conversation, is_asked=is_asked).removeprefix(self._BOS)
        return text.replace(self._BOS, self.tokenizer.bos_token or "")

    def _render(self, conversation: Conversation, *, is_asked: bool) -> str:
        # A stand-in tells the start token from a turn that begins with the same text.
        stand_in = {"bos_token": self._BOS} if self.tokenizer.bos_token else {}
        try:
            return tokenizers.render(
                self.template,
                conversation,
                is_asked=is_asked,
                tokens={**self.tokenizer.special_tokens_map, **stand_in},
            )
        except sandbox.TemplateError as e:
            raise RefusedError(str(e)) from e


class _HuggingFace:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer: Any = tokenizers.of_transformers(folder)
        self.size = len(self._tokenizer)
        self.added: Mapping[str, int] = {
            str(t): i for i, t in self._tokenizer.added_tokens_decoder.items()
        }
        self.end_token = self._tokenizer.eos_token_id
        self.chat = self._chat()
        self._probes = (*PROBES, with_tokens(list(self.added)))
        self._ids = [self._encode(probe) for probe in self._probes]
        self.form: Form = "sentencepiece" if self._is_sentencepiece() else "huggingface"
        self.start_token = self._start_token()

    def file(self, scratch: Path) -> Path:
        from tokenizers import Tokenizer

        if self.form == "sentencepiece":
            return self._folder / "tokenizer.model"
        found = self._folder / "tokenizer.json"
        if found.is_file() and self._is_same(Tokenizer.from_file(str(found))):
            return found
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ArtifactError(
                f"the tokenizer in {self._folder} has no form that LiteRT-LM reads", remedy=_REMEDY
            )
        made = Tokenizer.from_str(backend.to_str())
        made.no_truncation()
        made.no_padding()
        if not self._is_same(made):
            raise ArtifactError(
                f"tokenizer.json made from the tokenizer in {self._folder} gives other ids than it",
                remedy=_REMEDY,
            )
        path = scratch / "tokenizer.json"
        path.write_text(made.to_str(), encoding="utf-8")
        return path

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _is_same(self, tokenizer: Any) -> bool:
        # LiteRT-LM lets a tokenizer.json add no special tokens; it has the start token of its own.
        encoded = (tokenizer.encode(p, add_special_tokens=False).ids for p in self._probes)
        return all(a == b for a, b in zip(encoded, self._ids, strict=True))

    def _is_sentencepiece(self) -> bool:
        path = self._folder / "tokenizer.model"
        if not path.is_file():
            return False
        from sentencepiece import SentencePieceProcessor

        try:
            processor = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError):
            return False  # some tokenizers keep another format under this name
        return [processor.encode(p) for p in self._probes] == self._ids

    def _start_token(self) -> int | None:
        bare, full = self._ids[0], list(self._tokenizer(self._probes[0])["input_ids"])
        before = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        if before > 1:
            raise ArtifactError(
                f"the tokenizer in {self._folder} puts {before} tokens before a text, and LiteRT-LM"
                " has one start token",
                remedy=_REMEDY,
            )
        if before:
            return int(full[0])
        if self.chat and self.chat.begins_with_start_token:
            return int(self._tokenizer.bos_token_id)
        return None

    def _chat(self) -> ChatTemplate | None:
        if not self._tokenizer.chat_template:
            return None
        names = self._tokenizer.special_tokens_map
        tokens = {n: t for n, t in names.items() if isinstance(t, str) and n != "bos_token"}
        template = self._tokenizer.get_chat_template()
        return ChatTemplate(self._tokenizer, template, tokens)


class _SentencePiece:
    """A bare tokenizer.model, as Kaggle ships it: no chat template."""

    form: Form = "sentencepiece"
    chat: ChatTemplate | None = None

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        processor: Any = SentencePieceProcessor(model_file=str(path))
        self._path = path
        self.size = processor.vocab_size()
        self.start_token = _or_none(processor.bos_id())
        self.end_token = _or_none(processor.eos_id())
        self.added: Mapping[str, int] = {}

    def file(self, scratch: Path) -> Path:
        return self._path


def _or_none(token: int) -> int | None:
    return token if token >= 0 else None


def with_tokens(tokens: Sequence[str]) -> str:
    """Returns a text with each token twice: text close by, and blanks and newlines around it."""
    return "".join(f"word{t}word {t} \n{t}\n" for t in tokens)
