"""plugins test: a plugin against the contract."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.cli.verify import FAILED

if TYPE_CHECKING:
    from edgezoo_core.testkit.check import Outcome
    from edgezoo_core.testkit.report import Report


@click.command("test")
@click.argument("family")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report to a JSON file, too.",
)
@json_option
@verbose_option
@click.pass_context
def test_command(
    ctx: click.Context, family: str, output: Path | None, as_json: bool, verbose: bool
) -> None:
    """Hold the installed plugin of FAMILY to the contract; takes under a minute.

    Small random models stand for those that are published: nothing is downloaded. Exit code 3 says
    that a must fails, or something that the plugin's card claims.
    """
    # What the libraries and the plugin print is no data.
    talk = sys.stderr if verbose else io.StringIO()
    if output:
        from edgezoo_core import artifact

        artifact.refuse_odd(output.resolve())
    with working(verbose=verbose) as stages, redirect_stdout(talk):
        from edgezoo_core.testkit import examination

        report = examination.examine(examination.find(family), stages)
        stages.done()
    if output:
        _write(report, output)
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)
    if not report.passes:
        ctx.exit(FAILED)


def _write(report: Report, output: Path) -> None:
    import json

    from edgezoo_core import artifact

    with artifact.writing(output) as (partial, _):
        partial.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")


def _print(report: Report) -> None:
    rows: list[tuple[str, ...]] = [
        (o.check, o.capability or "must", o.verdict, _remark(o)) for o in report.outcomes
    ]
    click.echo(table(rows, ("CHECK", "ASKED BY", "VERDICT", "MEASURED, OR THE DEMAND")))
    for outcome in report.outcomes:
        if outcome.verdict == "failed":
            click.echo(f"\n{outcome.check}")
            for line in outcome.found:
                click.echo(f"  {line}")
    counts = ", ".join(f"{len(report.named(v))} {v}" for v in ("passed", "failed", "not reached"))
    click.echo(f"\n{counts} in {report.seconds:.0f} s")
    click.echo(f"For the README: {report.badge}")


def _remark(outcome: Outcome) -> str:
    if outcome.verdict == "failed":
        return outcome.demand
    said = "; ".join(outcome.found)
    return f"needs {said}" if outcome.verdict == "not reached" else said
