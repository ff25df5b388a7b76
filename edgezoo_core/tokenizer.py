"""Text to token ids and back, with the tokenizer that the checkpoint brings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgezoo_core import sandbox, texts
from edgezoo_core.checkpoint import TEXT_FILES, refuse_links
from edgezoo_core.errors import ArtifactError, CheckpointError

#: `role` (system, user or assistant) and `content`.
Message = Mapping[str, str]

#: One of them is there where a tokenizer is: of transformers, or SentencePiece's model alone.
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class Tokenizer(Protocol):
    """What running a model needs of a tokenizer.

    Attributes:
        stop: Token ids that end an answer.
        size: Number of ids that it knows.
    """

    stop: frozenset[int]
    size: int

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, with the start token if the tokenizer puts one."""

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a conversation and of what asks for the next answer.

        It begins with the start token if texts do, as on the device, whether or not the chat
        template writes it. Without a chat template these are the contents, one after the other.

        Raises:
            ArtifactError: The chat template does not take them.
        """

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, control tokens left out."""


def load(folder: Path) -> Tokenizer:
    """Loads the tokenizer in a folder. No code of the checkpoint is run.

    Raises:
        ArtifactError: There is none, or it cannot be read.
    """
    stop = _stop_tokens(folder)
    try:
        if any((folder / name).is_file() for name in FILES[:2]):
            return _HuggingFace(folder, stop)
        if (folder / FILES[2]).is_file():
            return _SentencePiece(folder / FILES[2], stop)
    except (ArtifactError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # any exception at all, and a panic of Rust is not even that
        raise ArtifactError(
            f"the tokenizer in {folder} cannot be loaded: {str(e)[:500]}",
            remedy="pass --tokenizer with a folder that holds a sound one",
        ) from e
    raise ArtifactError(
        f"no tokenizer in {folder}", remedy="pass --tokenizer with a folder that holds one"
    )


def of_transformers(folder: Path) -> Any:
    """Loads the tokenizer in a folder with transformers: only its own classes, none of the folder.

    Raises:
        ArtifactError: A file is too long for a tokenizer's, or a link that leads out of the folder.
        Exception: transformers cannot load it; the kind of exception is not known.
    """
    from transformers import AutoTokenizer

    for name in TEXT_FILES:
        path = folder / name
        if path.is_file() and path.stat().st_size > texts.TOKENIZER_BYTES:
            raise ArtifactError(
                f"{path} is longer than {texts.TOKENIZER_BYTES} bytes",
                remedy="pass --tokenizer with a folder that holds a sound one",
            )
    try:
        refuse_links(folder, TEXT_FILES)
    except CheckpointError as e:
        raise ArtifactError(e.message, remedy=e.remedy) from e
    return AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )


def render(
    template: str,
    messages: Sequence[Message],
    *,
    is_asked: bool,
    is_continued: bool = False,
    tokens: Mapping[str, Any],
) -> str:
    """Renders a chat template as transformers does, in a process with limits.

    Args:
        template: Jinja text.
        messages: The conversation.
        is_asked: Whether the beginning of an answer is added.
        is_continued: Whether the text stops within the last message.
        tokens: Special tokens by their names.

    Raises:
        TemplateError: It does not take the messages, or takes too much time or memory.
    """
    request = {
        "template": template,
        "conversation": [dict(message) for message in messages],
        "is_asked": is_asked,
        "is_continued": is_continued,
        "tokens": {name: _plain(value) for name, value in tokens.items()},
    }
    return sandbox.render("transformers", request)


def _plain(value: Any) -> Any:
    return [str(v) for v in value] if isinstance(value, list | tuple) else str(value)


def stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Yields text as it becomes certain: never half of a character."""
    seen: list[int] = []
    shown = ""
    for token in ids:
        seen.append(token)
        text = tokenizer.text(seen)
        if text.startswith(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.text(seen)
    if rest.startswith(shown):
        yield rest[len(shown) :]


class _HuggingFace:
    def __init__(self, folder: Path, stop: frozenset[int]) -> None:
        self._tokenizer: Any = of_transformers(folder)
        eos = self._tokenizer.eos_token_id
        self.stop = stop | ({eos} if isinstance(eos, int) else frozenset())
        self.size = len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        if not self._tokenizer.chat_template:
            return self.encode("".join(m["content"] for m in messages))
        try:
            text = render(
                self._tokenizer.get_chat_template(),
                messages,
                is_asked=True,
                tokens=self._tokenizer.special_tokens_map,
            )
        except sandbox.TemplateError as e:
            roles = ", ".join(m["role"] for m in messages)
            raise ArtifactError(
                f"the chat template does not take a conversation of {roles}: {e}",
                remedy="leave out --system, or pass --raw",
            ) from e
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        # LiteRT-LM begins a conversation as the tokenizer begins a text; transformers does not.
        start = self._start()
        return [*start, *ids] if ids[: len(start)] != start else list(ids)

    def _start(self) -> list[int]:
        """Returns what the tokenizer puts before a text."""
        bare, full = (
            list(self._tokenizer("a", add_special_tokens=added)["input_ids"])
            for added in (False, True)
        )
        begin = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return full[:begin]

    def text(self, ids: Sequence[int]) -> str:
        decoded: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return decoded


class _SentencePiece:
    """A bare tokenizer.model, as Kaggle ships it: no chat template."""

    def __init__(self, path: Path, stop: frozenset[int]) -> None:
        from sentencepiece import SentencePieceProcessor

        self._processor: Any = SentencePieceProcessor(model_file=str(path))
        self.stop = stop | {self._processor.eos_id()}
        self.size = self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text, add_bos=self._processor.bos_id() >= 0)
        return ids

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        return self.encode("".join(m["content"] for m in messages))

    def text(self, ids: Sequence[int]) -> str:
        decoded: str = self._processor.decode(list(ids))
        return decoded


def _stop_tokens(folder: Path) -> frozenset[int]:
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            value = texts.read_json(path, texts.CONFIG_BYTES).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as e:
            raise ArtifactError(f"{path} is no JSON object: {e}", remedy="correct it") from e
        values = value if isinstance(value, list) else [value]
        found.update(v for v in values if isinstance(v, int))
    return frozenset(found)
