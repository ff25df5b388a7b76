"""check: the runtime's contract, so that what fails on the phone fails here first."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.cli.verify import FAILED
from edgezoo_core.errors import EdgezooError

if TYPE_CHECKING:
    from edgezoo_core.contract.report import Finding, Report
    from edgezoo_core.types import Progress

logger = logging.getLogger(__name__)


@click.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--source",
    metavar="PATH|REPO",
    help="A folder or hub repo with the source's tokenizer; default: from the manifest.",
)
@click.option("--fix", is_flag=True, help="Mend what needs no new conversion, in place.")
@json_option
@verbose_option
@click.pass_context
def check_command(
    ctx: click.Context, file: Path, source: str | None, fix: bool, as_json: bool, verbose: bool
) -> None:
    """Hold FILE, a .tflite or .litertlm from anybody, against what LiteRT-LM needs.

    Exit code 3 says that the device would refuse it, or talk garbage.
    """
    with working(verbose=verbose) as stages:
        from edgezoo_core import contract
        from edgezoo_core.contract import mending

        texts = _texts(file, source, stages)
        report = (mending.mend if fix else contract.check)(file, texts, stages)
        stages.done()
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)
    if not report.passes:
        ctx.exit(FAILED)


def _texts(file: Path, source: str | None, progress: Progress) -> Path | None:
    """Returns the folder with the source's texts; None if it is not known."""
    from edgezoo_core import text_sources
    from edgezoo_core.artifact import Artifact
    from edgezoo_core.contract import manifest

    if source:
        return text_sources.tokenizer_folder(source, progress)
    found = manifest.beside(file)
    if found is None or "checkpoint" not in found:
        return None
    try:
        return text_sources.known_texts(Artifact(file, found), progress)
    except EdgezooError as e:
        logger.warning("%s: what needs the source is not checked", e.message)
        return None


def _print(report: Report) -> None:
    rows: list[tuple[str, ...]] = [
        (
            outcome.rule,
            outcome.verdict,
            outcome.demand if outcome.findings else outcome.reason or outcome.demand,
        )
        for outcome in report.outcomes
    ]
    click.echo(table(rows, ("RULE", "VERDICT", "DEMAND, OR WHY IT WAS NOT CHECKED")))
    for finding in sorted(report.findings, key=lambda f: f.severity):
        _print_finding(finding)
    if report.mended:
        click.echo(f"\nmended: {', '.join(report.mended)}")
    warnings = len(report.findings) - len(report.errors)
    click.echo(f"\n{len(report.errors)} errors, {warnings} warnings")


def _print_finding(finding: Finding) -> None:
    click.echo(f"\n{finding.severity}: {finding.rule}")
    click.echo(f"  found  {finding.found}")
    click.echo(f"  why    {finding.why}")
    click.echo(f"  fix    {finding.remedy}")
