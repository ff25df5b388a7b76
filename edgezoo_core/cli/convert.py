"""convert: from a target to a .tflite and its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from edgezoo_core.cli import promise as promises
from edgezoo_core.cli.console import working
from edgezoo_core.cli.conversion_options import conversion_options
from edgezoo_core.cli.options import (
    TARGET_HELP,
    json_option,
    print_json,
    source_options,
    verbose_option,
)
from edgezoo_core.cli.promise import promise_options
from edgezoo_core.cli.verify import FAILED, print_report
from edgezoo_core.errors import plain

if TYPE_CHECKING:
    from edgezoo_core.search import Found
    from edgezoo_core.searching.promise import Promise
    from edgezoo_core.types import Progress
    from edgezoo_core.verification.report import Report
    from edgezoo_core.zoo import Conversion


@click.command("convert", epilog=TARGET_HELP)
@click.argument("target")
@conversion_options
@click.option(
    "--verify",
    "is_verified",
    is_flag=True,
    help="Hold the file against its source afterwards; exit code 3 if it does not pass.",
)
@promise_options
@click.option("--force", is_flag=True, help="Replace what stands there.")
@source_options
@json_option
@verbose_option
@click.pass_context
def convert_command(
    ctx: click.Context,
    target: str,
    wanted: dict[str, Any],
    is_verified: bool,
    promise: Promise | None,
    held_out: Path | None,
    plot: Path | None,
    force: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Convert TARGET to one .tflite with prefill and decode signatures, and bundle it."""
    with working(verbose=verbose) as stages:
        found = None
        if promise:
            found = _keep(promise, plot, target, held_out, force=force, stages=stages, **wanted)
            conversion = found.conversion
        else:
            from edgezoo_core import zoo

            conversion = zoo.convert(target, force=force, progress=stages, **wanted)
        report = _verified(conversion, stages) if is_verified else None
        stages.done()
    if as_json:
        _print_json(conversion, report, found)
    else:
        _print(conversion)
        if found:
            click.echo()
            promises.show(found)
        if report:
            click.echo()
            print_report(report)
    if (report and not report.passes) or (found and not found.chosen.is_kept):
        ctx.exit(FAILED)


def _keep(
    promise: Promise,
    plot: Path | None,
    target: str,
    held_out: Path | None,
    *,
    force: bool,
    stages: Progress,
    **wanted: Any,
) -> Found:
    promises.check(promise, wanted["engine"])
    if plot:
        from edgezoo_core import drawing

        drawing.check(plot)
    from edgezoo_core import search

    found = search.keep(target, promise, held_out=held_out, force=force, progress=stages, **wanted)
    if plot:
        from edgezoo_core.searching import chart

        chart.draw(promise, found.curve, found.trials, found.chosen, plot)
    return found


def _verified(conversion: Conversion, stages: Progress) -> Report:
    from edgezoo_core import certificate

    return certificate.verify(conversion.artifact.path, progress=stages)


def _print_json(conversion: Conversion, report: Report | None, found: Found | None) -> None:
    print_json(
        {
            "path": str(conversion.artifact.path),
            "bundle": str(conversion.bundle) if conversion.bundle else None,
            "seconds": {k: round(v, 3) for k, v in conversion.seconds.items()},
            "peak_memory_bytes": dict(conversion.peak_memory_bytes),
            "from_cache": list(conversion.from_cache),
            "manifest": conversion.artifact.manifest,
            **({"promise": promises.to_json(found)} if found else {}),
            **({"verification": report.to_json()} if report else {}),
        }
    )


def _print(conversion: Conversion) -> None:
    manifest = cast("dict[str, Any]", conversion.artifact.manifest)
    written = manifest["artifact"]
    signatures = ", ".join(s["name"] for s in manifest["signatures"])
    click.echo(f"file            {plain(str(conversion.artifact.path))}")
    click.echo(f"size            {written['size_bytes'] / 1e6:.1f} MB")
    click.echo(f"sha256          {written['sha256']}")
    click.echo(f"signatures      {signatures}")
    if conversion.bundle:
        click.echo(f"bundle          {plain(str(conversion.bundle))}")
    click.echo(f"time            {sum(conversion.seconds.values()):.1f} s")
    click.echo(f"peak memory     {max(conversion.peak_memory_bytes.values()) / 1e9:.2f} GB")
