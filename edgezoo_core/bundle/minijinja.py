"""A source's own Jinja template, made fit for LiteRT-LM's minijinja; where that cannot be: None."""

from __future__ import annotations

import json

from edgezoo_core.bundle.prompts import Chat, RefusedError

#: Methods of strings that LiteRT-LM 0.18's minijinja has; it has none of mappings and lists.
METHODS = frozenset({"strip", "lstrip", "rstrip", "split", "startswith", "endswith", "replace"})

# LiteRT-LM gives content as a list of typed parts and names no special token.
_PLAIN_MESSAGES = (
    "{%- set ns = namespace(plain=[]) -%}{%- for message in messages -%}"
    "{%- set text = message.content if message.content is string"
    " else message.content[0].text -%}"
    "{%- set ns.plain = ns.plain + [{'role': message.role, 'content': text}] -%}"
    "{%- endfor -%}{%- set messages = ns.plain -%}"
)


def adapt(chat: Chat) -> str | None:
    """Returns the template with what it needs set before it, or None if minijinja lacks some of it.

    LiteRT-LM prefills what a rendering adds to the one before, so that each must begin with the
    one before; a template that rewrites earlier turns will not do.
    """
    if not _is_supported(chat.template) or chat.template.count("bos_token") > 1:
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


def _is_supported(template: str) -> bool:
    from jinja2 import Environment, TemplateError, nodes

    try:
        tree = Environment(autoescape=True, extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateError:
        return False
    methods = {
        call.node.attr for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr)
    }
    return methods <= METHODS
