"""Conversations, what renders them, and a chat template as text before and after each turn."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Conversation = Sequence[Mapping[str, str]]

# LiteRT-LM pastes affixes into Jinja text, where a newline behind a block, blanks before one, and
# Jinja's own brackets are not what they are in the source.
_UNSAFE = re.compile(r"^[\r\n]|(^|\n)[ \t]+$|\{[{%#]|[}%#]\}|[{%#}]$")


class RefusedError(Exception):
    """A chat template does not take a conversation."""


class Renderer(Protocol):
    """What renders conversations."""

    def render(self, conversation: Conversation, *, is_asked: bool) -> str:
        """Renders turns, and the beginning of an answer if asked; start token left out.

        Raises:
            RefusedError: The template does not take them.
        """


class Chat(Renderer, Protocol):
    """A source's chat template."""

    @property
    def template(self) -> str:
        """Its Jinja text."""

    @property
    def tokens(self) -> Mapping[str, str]:
        """The special tokens that it may name, `eos_token` say, start token left out."""

    @property
    def added(self) -> Collection[str]:
        """The tokens that are matched before a text is split."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Text around a role's content, and whether white space around the content is dropped."""

    prefix: str
    suffix: str
    is_trimmed: bool = False

    def render(self, content: str) -> str:
        """Returns the turn."""
        return self.prefix + (content.strip() if self.is_trimmed else content) + self.suffix


@dataclass(frozen=True, slots=True)
class Turns:
    """A chat template that treats every turn of a role alike.

    Attributes:
        user: What the user says.
        model: What the model answered.
        system: The first message's, or None where the source refuses one.
        opening: What the source says first where there is no system message.
        answer: What asks the model to answer; mostly the model's prefix.
        after_stop: The end of the model's suffix, behind the token that ends an answer.
    """

    user: Turn
    model: Turn
    system: Turn | None
    opening: str
    answer: str
    after_stop: str = ""

    def render(self, conversation: Conversation, *, is_asked: bool) -> str:
        """Renders as `Chat.render` does.

        Raises:
            RefusedError: There is a system message, which the source refuses.
        """
        roles = {"user": self.user, "assistant": self.model, "system": self.system}
        text = "" if conversation[0]["role"] == "system" else self.opening
        for message in conversation:
            turn = roles[message["role"]]
            if turn is None:
                raise RefusedError("no system message")
            text += turn.render(message["content"])
        return text + (self.answer if is_asked else "")

    @property
    def is_plain(self) -> bool:
        """Whether LiteRT-LM's own template renders the same from the prefixes and suffixes."""
        turns = (self.user, self.model, self.system)
        return (
            not self.opening
            and not self.after_stop
            and self.answer == self.model.prefix
            and all(t is not None and not t.is_trimmed for t in turns)
            and not any(_UNSAFE.search(a) for t in turns if t for a in (t.prefix, t.suffix))
        )
