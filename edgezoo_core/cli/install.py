"""install: plugins by the names of the index."""

from __future__ import annotations

import shlex

import click

from edgezoo_core import installing
from edgezoo_core.errors import PluginError


@click.command("install")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--upgrade", is_flag=True, help="Install the newest version, also over an older one.")
@click.option("--unlisted", is_flag=True, help="Also install packages that the index lacks.")
@click.option("--dry-run", is_flag=True, help="Show the command, and do not run it.")
def install_command(names: tuple[str, ...], upgrade: bool, unlisted: bool, dry_run: bool) -> None:
    """Install the plugins that NAMEs stand for into this environment.

    NAME is a family, a model or a package of the index; see `edgezoo list --available`. The command
    of pip or uv is shown before it runs.
    """
    wanted = list(
        dict.fromkeys(installing.resolve(name, may_be_unlisted=unlisted) for name in names)
    )
    missing = [r for r in wanted if upgrade or not installing.is_present(r)]
    for requirement in wanted:
        if requirement not in missing:
            note = f"{requirement} is already installed; --upgrade looks for a newer version"
            click.echo(note, err=True)
    if missing:
        command = installing.command(missing, is_upgrade=upgrade)
        click.echo(f"$ {shlex.join(command)}", err=True)
        if not dry_run:
            installing.run(command)
    if dry_run:
        return
    outcomes = installing.examine(wanted)
    for outcome in outcomes:
        if outcome.is_ok:
            click.echo(outcome.about)
    broken = [outcome.about for outcome in outcomes if not outcome.is_ok]
    if broken:
        raise PluginError("; ".join(broken), remedy="see `edgezoo plugins --verbose`")
