"""A chat template as LiteRT-LM takes it: text before and after each turn, read out of renderings.

The source's template is rendered on conversations of marked texts, and what stands around the
marks is the prefix and suffix of each role. What is found so is held against the source on further
conversations before it is believed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from edgezoo_core.bundle import jinja, rendering
from edgezoo_core.bundle.turns import Chat, Conversation, RefusedError, Renderer, Turn, Turns

#: `prompt_templates`: the runtime's own way of putting prefixes and suffixes together is exact.
#: `generated_jinja`: it is not, and a template written here is. `source_jinja`: the source's own.
Kind = Literal["prompt_templates", "generated_jinja", "source_jinja", "none"]

_U, _A, _S = "user", "assistant", "system"
#: Beginnings of every conversation that a phone can ask to be continued, told from each other by
#: turns; each is tried with each text.
_SHAPES = ((_U,), (_U, _A, _U), (_U, _A, _U, _A, _U), (_S, _U), (_S, _U, _A, _U))
_TEXTS = ("Hello there!", "  two\nlines \n\n", "{{ x }} {% y %} <b>", "na\u00efve 12 34 \U0001f600")


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
        return Prompts("generated_jinja", turns, jinja.generate(turns), end)
    adapted = jinja.adapt(chat)
    if adapted is None or not _is_exact(chat, rendering.Template(adapted)):
        return Prompts("none", end_of_answer=end)
    return Prompts("source_jinja", jinja=adapted, end_of_answer=end)


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
