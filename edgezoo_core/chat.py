"""A conversation with an artifact: LiteRT-LM where there is a bundle, else the interpreter."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgezoo_core.artifact import BUNDLE_SUFFIX, Artifact
from edgezoo_core.errors import ArtifactError

if TYPE_CHECKING:
    from edgezoo_core.runtime import Sampler, Session
    from edgezoo_core.tokenizer import Tokenizer

Engine = Literal["litert-lm", "interpreter"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine tells of its last answer.

    Attributes:
        engine: Who answered.
        prompt_tokens: Ids of the conversation so far; None where the engine does not tell.
        answer_tokens: Ids of the answer; None where the engine does not tell.
        count: Number of tokens of the answer.
        cut: Why it ended before the model ended it, empty if it did not. LiteRT-LM does not tell
            that its cache is full.
    """

    engine: Engine
    prompt_tokens: list[int] | None
    answer_tokens: list[int] | None
    count: int
    cut: str


class Chat(Protocol):
    """A conversation."""

    def say(self, text: str) -> Generator[str, None, None]:
        """Yields the answer to a turn, as it comes. Closing the iterator ends the answer."""

    def told(self) -> Answer:
        """Tells of the last answer."""

    def close(self) -> None:
        """Frees the model; nothing can be said afterwards."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How to answer.

    Attributes:
        sampler: How tokens are chosen.
        max_tokens: Longest answer.
        system: What the model is told before the first turn.
        is_raw: Whether a turn is continued as it is, without the chat template.
    """

    sampler: Sampler
    max_tokens: int
    system: str | None = None
    is_raw: bool = False


def suited(converted: Artifact) -> Engine:
    """Returns the engine for a file: LiteRT-LM where it is installed and there is a bundle."""
    if converted.path.suffix == BUNDLE_SUFFIX:
        return "litert-lm"
    return "litert-lm" if _packed(converted) and find_spec("litert_lm") else "interpreter"


def bundle_of(converted: Artifact) -> Path:
    """Returns a file's bundle: itself, or the one that its manifest records.

    Raises:
        ArtifactError: There is none.
    """
    if converted.path.suffix == BUNDLE_SUFFIX:
        return converted.path
    packed = _packed(converted)
    if packed is None:
        raise ArtifactError(
            f"{converted.path} has no bundle, which LiteRT-LM needs",
            remedy=f"edgezoo bundle {converted.path}",
        )
    return packed


def _packed(converted: Artifact) -> Path | None:
    recorded = (converted.manifest or {}).get("bundle")
    if not recorded:
        return None
    path = converted.path.parent / recorded["file"]
    is_same = path.is_file() and path.stat().st_size == recorded["size_bytes"]
    return path if is_same else None


class InterpreterChat:
    """See `Chat`; through the interpreter, with the source's own tokenizer and template."""

    def __init__(self, session: Session, tokenizer: Tokenizer, manner: Manner) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._manner = manner
        system = manner.system
        self._messages = [{"role": "system", "content": system}] if system else []
        self._prompt: list[int] = []
        self._answer: list[int] = []

    def close(self) -> None:
        """See `Chat.close`."""
        self._session.close()

    def say(self, text: str) -> Generator[str, None, None]:
        """See `Chat.say`."""
        from edgezoo_core import tokenizer as tokenizers

        self._messages.append({"role": "user", "content": text})
        if self._manner.is_raw:
            self._prompt = self._tokenizer.encode("".join(m["content"] for m in self._messages))
        else:
            self._prompt = self._tokenizer.conversation(self._messages)
        self._answer = []
        try:
            yield from tokenizers.stream(self._tokenizer, self._tokens())
        finally:
            content = self._tokenizer.text(self._answer)
            self._messages.append({"role": "assistant", "content": content})

    def told(self) -> Answer:
        """See `Chat.told`."""
        count, capacity = len(self._answer), self._session.capacity
        is_full = len(self._prompt) + count >= capacity
        cut = f"the KV cache of {capacity} is full" if is_full else _cut(count, self._manner)
        return Answer("interpreter", self._prompt, self._answer, count, cut)

    def _tokens(self) -> Iterator[int]:
        tokenizer, manner = self._tokenizer, self._manner
        for token in self._session.generate(
            self._prompt, manner.max_tokens, manner.sampler, tokenizer.stop, tokenizer.size
        ):
            self._answer.append(token)
            yield token


class LiteRTLMChat:
    """See `Chat`; through LiteRT-LM, with what the bundle carries.

    Raises:
        ArtifactError: LiteRT-LM is not installed, or refuses the bundle.
    """

    def __init__(self, path: Path, manner: Manner) -> None:
        try:
            import litert_lm
        except ImportError as e:
            raise ArtifactError(
                f"{path} needs LiteRT-LM, which is not installed",
                remedy="pip install 'edgezoo-core[run]', or name the .tflite",
            ) from e
        litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
        self._path = path
        self._manner = manner
        self._messages = [{"role": "system", "content": manner.system}] if manner.system else []
        self._count = 0
        drawn = manner.sampler
        self._sampler = litert_lm.SamplerConfig(
            # LiteRT-LM has no greedy choice of its own on a CPU: that is one of one.
            top_k=1 if drawn.temperature <= 0 else drawn.top_k or 1 << 30,
            top_p=1.0,
            temperature=drawn.temperature,
            seed=drawn.seed,
        )
        try:
            # Without a cache of its own it leaves no file beside the bundle.
            self._engine: Any = litert_lm.Engine(
                str(path), backend=litert_lm.Backend.CPU(), cache_dir=":nocache"
            )
            self._turns = self._begin()
        except (RuntimeError, ValueError) as e:
            raise _refused(path, e) from e

    def close(self) -> None:
        """See `Chat.close`."""
        self._turns.close()
        self._engine.close()

    def say(self, text: str) -> Generator[str, None, None]:
        """See `Chat.say`."""
        pieces: list[str] = []
        # The runtime calls back from a thread of its own until it has ended: its iterator must be
        # read to the end, whatever happens here.
        heard: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        listener = threading.Thread(target=self._listen, args=(text, heard), daemon=True)
        listener.start()
        is_over = False
        try:
            while (piece := heard.get()) is not None:
                if isinstance(piece, Exception):
                    raise _refused(self._path, piece) from piece
                pieces.append(piece)
                yield piece
            is_over = True
        finally:
            answer = "".join(pieces)
            self._count = len(self._engine.tokenize(answer))
            self._messages.append({"role": "user", "content": text})
            self._messages.append({"role": "assistant", "content": answer})
            if not is_over:
                self._turns.cancel_process()
            listener.join()
            if not is_over:
                # A conversation that was cancelled stays so.
                self._turns.close()
                self._turns = self._begin()

    def _begin(self) -> Any:
        """Returns the runtime's conversation, all turns so far in it."""
        options = {"sampler_config": self._sampler, "max_output_tokens": self._manner.max_tokens}
        if self._manner.is_raw:
            return self._engine.create_session(apply_prompt_template=False, **options)
        return self._engine.create_conversation(messages=self._messages or None, **options)

    def _listen(self, text: str, heard: queue.SimpleQueue[str | Exception | None]) -> None:
        try:
            for piece in self._continued(text) if self._manner.is_raw else self._answered(text):
                heard.put(piece)
        except Exception as e:
            heard.put(e)
        heard.put(None)

    def told(self) -> Answer:
        """See `Chat.told`."""
        return Answer("litert-lm", None, None, self._count, _cut(self._count, self._manner))

    def _answered(self, text: str) -> Iterator[str]:
        for message in self._turns.send_message_async(text):
            yield str(message)

    def _continued(self, text: str) -> Iterator[str]:
        self._turns.run_prefill([text])
        for responses in self._turns.run_decode_async():
            yield "".join(responses.texts)


def _cut(count: int, manner: Manner) -> str:
    return "no more were asked for" if count >= manner.max_tokens else ""


def _refused(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"LiteRT-LM refuses {path}: {error}",
        remedy="see `edgezoo check`; --engine interpreter runs the .tflite without it",
    )
