"""Chat templates as LiteRT-LM 0.18 renders them: by minijinja, after some edits of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from edgezoo_core import sandbox
from edgezoo_core.bundle.turns import Conversation, RefusedError

#: What LiteRT-LM's `EditTemplateForMinijinja` makes of Python's methods, in its order. Other
#: methods fail: it uses minijinja without its Python mode.
_EDITS = tuple(
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"\.startswith\((.*?)\)", r" is startingwith \1"),
        (r"\.endswith\((.*?)\)", r" is endingwith \1"),
        (r"\.replace\((.*?),(.*?)\)", r" | replace(\1,\2)"),
        (r"\.split\((.*?)\)\[0\]", r" | split(\1) | first"),
        (r"\.split\((.*?)\)\[-1\]", r" | split(\1) | last"),
        (r"\.split\((.*?)\)", r" | split(\1)"),
        (r"\.join\((.*?)\)", r" | join(\1)"),
        (r"\.lstrip\(\)", r" | lstrip"),
        (r"\.lstrip\((.*?)\)", r" | lstrip(\1)"),
        (r"\.rstrip\(\)", r" | rstrip"),
        (r"\.rstrip\((.*?)\)", r" | rstrip(\1)"),
        (r"\.strip\(\)", r" | trim"),
        (r"\.strip\((.*?)\)", r" | trim(\1)"),
        (r"\.items\(\)", r" | items"),
        (r"\{% generation %\}", ""),
        (r"\{% endgeneration %\}", ""),
    )
)
_TAG = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_NONE = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|\bis(\s+not)?\s+none\b""", re.DOTALL)
_LOOP_CONTROL = re.compile(r"\{%[-+]?\s*(break|continue)\s*[-+]?%\}")
#: Steps after which a template is taken for one that never ends.
_FUEL = 10_000_000


@dataclass(frozen=True, slots=True)
class Template:
    """A bundle's template; see `turns.Renderer`."""

    text: str

    def render(self, conversation: Conversation, *, is_asked: bool) -> str:
        """See `turns.Renderer`."""
        return render(self.text, conversation, is_asked=is_asked)


def render(template: str, conversation: Conversation, *, is_asked: bool) -> str:
    """Renders a conversation as LiteRT-LM 0.18.1 does.

    Args:
        template: Jinja text, as a bundle has it.
        conversation: The turns.
        is_asked: Whether the beginning of an answer is added.

    Raises:
        RefusedError: minijinja cannot read it, it does not take the conversation, or it takes too
            much time or memory.
    """
    templates = {"main": _given(conversation, is_asked), "template": _edited(template)}
    try:
        return sandbox.render("minijinja", {"templates": templates, "fuel": _FUEL})
    except sandbox.TemplateError as e:
        raise RefusedError(str(e)) from e


def of_affixes(templates: Any) -> str:
    """Returns the template that LiteRT-LM makes where a bundle has none, but prompt_templates.

    Args:
        templates: The `PromptTemplates` of an LlmMetadata.
    """
    roles = (
        ("user", templates.user),
        ("assistant", templates.model),
        ("system", templates.system),
    )

    def by_role(name: str) -> str:
        tests = (f"message.role == '{role}' %}}{getattr(turn, name)}" for role, turn in roles)
        return "{%- if " + "{% elif ".join(tests) + "{% endif -%}"

    return (
        "{%- for message in messages -%}"
        + by_role("prefix")
        + "{%- for item in message.content %}{%- if item.type == 'text' %}{{ item.text }}"
        + "{% elif item.type == 'image' -%}{{ '<start_of_image>' }}"
        + "{%- elif item.type == 'audio' -%}{{ '<start_of_audio>' }}{%- endif -%}{%- endfor -%}"
        + by_role("suffix")
        + "{%- endfor -%}"
        + f"{{%- if add_generation_prompt %}}{templates.model.prefix}{{% endif -%}}"
    )


def _edited(template: str) -> str:
    """Returns a template as LiteRT-LM gives it to minijinja, in terms of this minijinja's tests."""
    for pattern, replacement in _EDITS:
        template = pattern.sub(replacement, template)
    found = _LOOP_CONTROL.search(template)
    if found:
        raise RefusedError(f"unknown statement {found[1]}")  # LiteRT-LM's is built without them

    # Its test `none` is true of what is undefined, and of nothing else.
    def none(match: re.Match[str]) -> str:
        return match[1] or f"is{match[2] or ''} undefined"

    return _TAG.sub(lambda tag: _NONE.sub(none, tag[0]), template)


def _given(conversation: Conversation, is_asked: bool) -> str:
    """Returns a template that sets what LiteRT-LM gives, and includes the one that is rendered.

    Values that come from Python keep methods that they have there; written as literals, they are
    minijinja's own.
    """
    messages = [
        {"content": [{"type": "text", "text": turn["content"]}], "role": turn["role"]}
        for turn in conversation
    ]
    values: Mapping[str, Any] = {
        "messages": messages,
        "add_generation_prompt": is_asked,
        "now": int(datetime.now().timestamp()),
        "bos_token": "",  # as of 0.18.1; the start token is put before the prompt's ids
        "eos_token": "",
    }
    lines = [f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in values.items()]
    return "".join(lines) + "{%- include 'template' -%}"
