"""reproduce: the same file once more."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.cli.verify import FAILED


@click.command("reproduce")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "--calibration",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The text that it was calibrated on, if it was the user's own.",
)
@json_option
@verbose_option
@click.pass_context
def reproduce_command(
    ctx: click.Context, manifest: Path, calibration: Path | None, as_json: bool, verbose: bool
) -> None:
    """Convert again what MANIFEST describes, and compare; nothing of it is kept.

    Exit code 3 says that something came out otherwise.
    """
    with working(verbose=verbose) as stages:
        from edgezoo_core import reproduction

        found = reproduction.reproduce(manifest, stages, calibration)
        stages.done()
    if as_json:
        print_json({**asdict(found), "passes": found.passes})
    else:
        rows: list[tuple[str, ...]] = [
            (name, "the same" if same else "DIFFERS", " ".join(found.sha256.get(name, ())[:1]))
            for name, same in found.same.items()
        ]
        click.echo(table(rows, ("WHAT", "CAME OUT", "SHA256")))
    if not found.passes:
        ctx.exit(FAILED)
