"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

TARGET_HELP = (
    "TARGET is a model id (see `edgezoo list`), a hub repo `org/name[@revision]`,"
    " or a folder that begins with `.`, `/` or `~`."
)


def json_option(command: F) -> F:
    """Adds --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def verbose_option(command: F) -> F:
    """Adds -v, which shows edgezoo's own log and lets the libraries talk."""

    def set_up(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
        if value:
            from edgezoo_core.cli.console import show_log

            show_log(verbose=True)
        return value

    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        callback=set_up,
        help="Say more, and let the libraries talk.",
    )(command)


def source_options(command: F) -> F:
    """Adds what chooses files and family: --revision, --family, --card."""
    for option in (
        click.option("--card", metavar="MODEL", help="The card that describes the files."),
        click.option("--family", metavar="NAME", help="Choose between families."),
        click.option("--revision", metavar="REV", help="Branch, tag or commit of the hub repo."),
    ):
        command = option(command)
    return command


def print_json(value: Any) -> None:
    """Prints a value as JSON to stdout."""
    import json

    click.echo(json.dumps(value, indent=2))


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Lays rows out in columns."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    lines = [header, *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
