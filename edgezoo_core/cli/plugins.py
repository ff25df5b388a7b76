"""plugins: what is installed, and in which state."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout

import click

from edgezoo_core import plugins
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.cli.plugins_test import test_command
from edgezoo_core.errors import tame
from edgezoo_core.plugins import Plugin


@click.group("plugins", invoke_without_command=True)
@json_option
@verbose_option
@click.pass_context
def plugins_command(ctx: click.Context, as_json: bool, verbose: bool) -> None:
    """Show the installed plugins and their states.

    Imports each one; --verbose shows the traceback of what fails.
    """
    if ctx.invoked_subcommand:
        return
    with redirect_stdout(sys.stderr):  # what a plugin prints at import is no data
        found = [plugins.examine(p) for p in plugins.discover()]
    if as_json:
        _print_json(found)
    elif found:
        header = ("FAMILY", "DISTRIBUTION", "API", "HOOKS", "STATE", "MODELS OR REASON")
        click.echo(table([_row(p) for p in found], header))
    else:
        click.echo("No plugins are installed; see `edgezoo list --available`.", err=True)
    if verbose:
        _show_tracebacks(found)


plugins_command.add_command(test_command)


def _row(plugin: Plugin) -> tuple[str, ...]:
    models = ", ".join(plugin.card.models) if plugin.card and plugin.is_usable else ""
    return (
        plugin.family,
        str(plugin),
        str(plugin.card.hook_api) if plugin.card else "",
        ", ".join(plugin.hooks),
        plugin.state,
        "; ".join(filter(None, (models, plugin.reason))),
    )


def _print_json(found: Sequence[Plugin]) -> None:
    print_json(
        [
            {
                "family": p.family,
                "distribution": p.distribution,
                "version": p.version,
                "hook_api": p.card.hook_api if p.card else None,
                "hooks": list(p.hooks),
                "state": p.state,
                "reason": p.reason,
                "architectures": list(p.card.architectures) if p.card else [],
                "models": list(p.card.models) if p.card else [],
            }
            for p in found
        ]
    )


def _show_tracebacks(found: Sequence[Plugin]) -> None:
    for plugin in found:
        if plugin.error:
            lines = "".join(traceback.format_exception(plugin.error)).rstrip()
            click.echo(f"\n{plugin.family} ({plugin}) is {plugin.state}:\n{tame(lines)}", err=True)
