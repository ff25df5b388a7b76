"""doctor: what is the matter with this machine, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.cli.verify import FAILED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgezoo_core.doctor.finding import Finding


@click.command("doctor")
@click.option("--offline", is_flag=True, help="Ask no hub.")
@json_option
@verbose_option
@click.pass_context
def doctor_command(ctx: click.Context, offline: bool, as_json: bool, verbose: bool) -> None:
    """Look at versions, machine, plugins, hub and token; say what to do about each fault.

    Exit code 3 says that something will not work. `edgezoo plugins test FAMILY` goes on to convert
    a small model.
    """
    with working(verbose=verbose) as stages:
        from edgezoo_core import doctor

        found = doctor.examine(is_offline=offline, progress=stages)
        stages.done()
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        _print(found)
    if any(finding.level == "error" for finding in found):
        ctx.exit(FAILED)


def _print(found: Sequence[Finding]) -> None:
    rows: list[tuple[str, ...]] = [(f.level, f.subject, f.found) for f in found]
    click.echo(table(rows, ("LEVEL", "SUBJECT", "FOUND")))
    for finding in found:
        if finding.remedy:
            click.echo(f"\n{finding.level}: {finding.subject}: {finding.found}")
            click.echo(f"  fix  {finding.remedy}")
