"""Jinja templates for LiteRT-LM: written from turns, or the source's own with what it needs."""

from __future__ import annotations

import json
from dataclasses import replace

from edgezoo_core.bundle.turns import Chat, RefusedError, Turn, Turns

_END_IF = "{%- endif -%}"
# LiteRT-LM gives content as a list of typed parts and names no special token.
_PLAIN_MESSAGES = (
    "{%- set ns = namespace(plain=[]) -%}{%- for message in messages -%}"
    "{%- set text = message.content if message.content is string"
    " else message.content[0].text -%}"
    "{%- set ns.plain = ns.plain + [{'role': message.role, 'content': text}] -%}"
    "{%- endfor -%}{%- set messages = ns.plain -%}"
)


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


def adapt(chat: Chat) -> str | None:
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
