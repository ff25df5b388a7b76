"""A chat template as LiteRT-LM takes it: text before and after each turn, read out of renderings.

The source's template is rendered on conversations of marked texts, and what stands around the
marks is the prefix and suffix of each role. What is found so is held against the source on further
conversations before it is believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

Conversation = Sequence[Mapping[str, str]]
#: `prompt_templates`: the runtime's own way of putting prefixes and suffixes together is exact.
#: `generated_jinja`: it is not, and a template written here is. `source_jinja`: the source's own.
Kind = Literal["prompt_templates", "generated_jinja", "source_jinja", "none"]


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


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a bundle says about prompts.

    Attributes:
        kind: Which of the ways of LiteRT-LM is used.
        turns: Prefixes and suffixes, where the source's template has such.
        jinja: The template, where prefixes and suffixes alone are not exact.
        end_of_answer: What follows an answer, the token that ends it first; "" if nothing does.
    """

    kind: Kind
    turns: Turns | None = None
    jinja: str | None = None
    end_of_answer: str = ""


def stop_text(ending: str, added: Collection[str]) -> str:
    """Returns what follows an answer up to and with the token that ends it; "" if none does."""
    bare = ending.lstrip()
    token = max((t for t in added if bare.startswith(t)), key=len, default="")
    return ending[: len(ending) - len(bare)] + token if token else ""


# LiteRT-LM pastes affixes into Jinja text, where a newline behind a block, blanks before one, and
# Jinja's own brackets are not what they are in the source.
_UNSAFE = re.compile(r"^[\r\n]|(^|\n)[ \t]+$|\{[{%#]|[}%#]\}|[{%#}]$")

_U, _A, _S = "user", "assistant", "system"
#: Beginnings of every conversation that a phone can ask to be continued, told from each other by
#: turns; each is tried with each text.
_SHAPES = ((_U,), (_U, _A, _U), (_U, _A, _U, _A, _U), (_S, _U), (_S, _U, _A, _U))
_TEXTS = ("Hello there!", "  two\nlines \n\n", "{{ x }} {% y %} <b>", "na\u00efve 12 34 \U0001f600")


def find(chat: Chat | None) -> Prompts:
    """Finds how LiteRT-LM renders what a source's chat template does.

    Args:
        chat: The template, or None where the source has none: then none is made up.
    """
    if chat is None:
        return Prompts("none")
    turns = None
    # A date in a prefix would be that of the bundling; only the template itself can tell today's.
    if "strftime_now" not in chat.template:
        turns = derive(chat)
    end = turns.model.suffix + turns.user.prefix if turns else _end_of_answer(chat)
    if turns and turns.is_plain:
        return Prompts("prompt_templates", turns, end_of_answer=end)
    if turns:
        return Prompts("generated_jinja", turns, generate(turns), end)
    from edgezoo_core.bundle import rendering

    jinja = _adapt(chat)
    is_exact = jinja is not None and _is_exact(chat, rendering.Template(jinja))
    if not is_exact:
        return Prompts("none", end_of_answer=end)
    return Prompts("source_jinja", jinja=jinja, end_of_answer=end)


def derive(chat: Chat) -> Turns | None:
    """Reads prefixes and suffixes out of renderings; None if the template has no such."""
    try:
        turns = _read(chat)
    except RefusedError:
        return None
    return turns if turns and _is_exact(chat, turns) else None


def _read(chat: Chat) -> Turns | None:
    open_end = _around(chat, (_U, _A, _U, _A, _U))
    asked = _around(chat, (_U, _A, _U, _A, _U), is_asked=True)
    answered = _around(chat, (_U, _A))
    if not (open_end and asked and answered):
        return None
    before, to_model, to_user, _, _, after = open_end
    if not asked[-1].startswith(after) or not to_model.startswith(after):
        return None
    # A template may end a last answer otherwise than an earlier one; then the split between two
    # turns shows where their text is like the beginning.
    ending = answered[-1]
    if not to_user.startswith(ending):
        ending = to_user.removesuffix(_common_end(before, to_user))
    user = Turn(to_user.removeprefix(ending), after, _trims(chat, (_U,), 0))
    if not before.endswith(user.prefix):
        return None
    model = Turn(to_model.removeprefix(after), ending, _trims(chat, (_U, _A, _U), 1))
    opening = before.removesuffix(user.prefix)
    system: Turn | None = None
    try:
        around = _around(chat, (_S, _U))
    except RefusedError:
        pass
    else:
        if not around or not around[1].endswith(user.prefix):
            return None
        suffix = around[1].removesuffix(user.prefix)
        system = Turn(around[0], suffix, _trims(chat, (_S, _U), 0))
    stop = stop_text(ending, chat.added)
    return Turns(
        user, model, system, opening, asked[-1].removeprefix(after), ending.removeprefix(stop)
    )


def _is_exact(chat: Chat, found: Renderer) -> bool:
    """Tells whether what was found renders as the source does on every probe."""
    for shape in _SHAPES:
        for shift in range(len(_TEXTS)):
            texts = [_TEXTS[(i + shift) % len(_TEXTS)] for i in range(len(shape))]
            conversation = _conversation(shape, texts)
            if _rendered(chat, conversation) != _rendered(found, conversation):
                return False
    return True


def generate(turns: Turns) -> str:
    """Writes the Jinja template that renders turns, with nothing in it that minijinja lacks.

    LiteRT-LM reads what a rendering adds to that of the turns before, and has read an answer up to
    the token that ended it. So what follows that token is put before the next turn.
    """
    refusal = '{{- raise_exception("System role not supported") -}}'
    system = _block(turns.system) if turns.system else refusal
    opening = f'{{%- if loop.first and message.role != "system" -%}}{_say(turns.opening)}' + _END_IF
    return (
        '{%- set ns = namespace(rest="") -%}{%- for message in messages -%}'
        '{{- ns.rest -}}{%- set ns.rest = "" -%}'
        + (opening if turns.opening else "")
        + '{%- if message.role == "user" -%}'
        + _block(turns.user)
        + '{%- elif message.role == "system" -%}'
        + system
        + "{%- else -%}"
        + _block(replace(turns.model, suffix=turns.model.suffix.removesuffix(turns.after_stop)))
        + f"{{%- set ns.rest = {json.dumps(turns.after_stop, ensure_ascii=False)} -%}}"
        + _END_IF
        + "{%- endfor -%}"
        + f"{{%- if add_generation_prompt -%}}{{{{- ns.rest -}}}}{_say(turns.answer)}{_END_IF}"
    )


_END_IF = "{%- endif -%}"


def _block(turn: Turn) -> str:
    # Content is a text, or as LiteRT-LM 0.18 gives it, a list of typed parts.
    trim = " | trim" if turn.is_trimmed else ""
    return (
        _say(turn.prefix)
        + f"{{%- if message.content is string -%}}{{{{- message.content{trim} -}}}}{{%- else -%}}"
        + '{%- for item in message.content -%}{%- if item.type == "text" -%}'
        + f"{{{{- item.text{trim} -}}}}"
        + _END_IF
        + "{%- endfor -%}"
        + _END_IF
        + _say(turn.suffix)
    )


def _say(text: str) -> str:
    # A literal keeps the newlines and blanks that Jinja strips off bare text.
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} -}}}}" if text else ""


# LiteRT-LM gives content as a list of typed parts and names no special token.
_PLAIN_MESSAGES = (
    "{%- set ns = namespace(plain=[]) -%}{%- for message in messages -%}"
    "{%- set text = message.content if message.content is string"
    " else message.content[0].text -%}"
    "{%- set ns.plain = ns.plain + [{'role': message.role, 'content': text}] -%}"
    "{%- endfor -%}{%- set messages = ns.plain -%}"
)


def _adapt(chat: Chat) -> str | None:
    """Returns the source's template with what it needs set before it; None where that is no use.

    LiteRT-LM reads what a rendering adds to the one before, so that each must begin with the one
    before; a template that rewrites earlier turns will not do.
    """
    if chat.template.count("bos_token") > 1:
        return None
    first = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]
    try:
        shorter = chat.render(first, is_asked=False)
        longer = chat.render([*first, {"role": "user", "content": "Three"}], is_asked=True)
    except RefusedError:
        return None
    if not longer.startswith(shorter):
        return None
    tokens = "".join(
        f"{{%- set {name} = {json.dumps(token, ensure_ascii=False)} -%}}"
        for name, token in sorted({**chat.tokens, "bos_token": ""}.items())
    )
    return tokens + _PLAIN_MESSAGES + chat.template


def _mark(index: int) -> str:
    return f"\ue001{index}\ue001"  # of the private use area: in no template


def _conversation(roles: Sequence[str], texts: Sequence[str]) -> Conversation:
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]


def _around(chat: Chat, roles: Sequence[str], *, is_asked: bool = False) -> list[str] | None:
    """Returns the texts before, between and after marked turns; None if a mark is lost."""
    marks = [_mark(i) for i in range(len(roles))]
    rest = chat.render(_conversation(roles, marks), is_asked=is_asked)
    pieces = []
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found or mark in rest:
            return None
        pieces.append(piece)
    return [*pieces, rest]


def _trims(chat: Chat, roles: Sequence[str], index: int) -> bool:
    """Tells whether white space around a turn's content is dropped."""
    texts = [f" {_mark(i)} " for i in range(len(roles))]
    return texts[index] not in chat.render(_conversation(roles, texts), is_asked=True)


def _end_of_answer(chat: Chat) -> str:
    try:
        around = _around(chat, (_U, _A, _U))
    except RefusedError:
        return ""
    return around[2] if around else ""


def _rendered(source: Renderer, conversation: Conversation) -> str | None:
    try:
        return source.render(conversation, is_asked=True)
    except RefusedError:
        return None


def _common_end(one: str, other: str) -> str:
    length = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        length += 1
    return one[len(one) - length :]
