"""Lines of Python as ruff would lay them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Longest line: the formatter's default, so that a plugin needs no setting for it.
LONGEST_LINE = 88
INDENT = "    "


def call(function: str, arguments: Sequence[str], *, target: str = "", depth: int = 1) -> str:
    """Returns a call, on one line if it fits.

    Args:
        function: Code of what is called.
        arguments: Code of each argument.
        target: What it is assigned to; `return` or `raise` for what happens to it instead.
        depth: Levels that it is indented.
    """
    start = f"{target} " if target in ("return", "raise") else f"{target} = " if target else ""
    outer, inner = INDENT * depth, INDENT * (depth + 1)
    line = f"{outer}{start}{function}({', '.join(arguments)})"
    if len(line) <= LONGEST_LINE and "\n" not in line:
        return line
    # The last comma keeps a formatter with a longer line from joining them again.
    lines = "".join(f"{inner}{argument},\n" for argument in arguments)
    return f"{outer}{start}{function}(\n{lines}{outer})"


def keywords(arguments: Mapping[str, str]) -> list[str]:
    """Returns keyword arguments."""
    return [f"{name}={code}" for name, code in arguments.items()]


def quoted(text: str) -> str:
    """Returns a plain text in quotes, as Python and TOML read it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else "?" for c in escaped) + '"'
