"""convert: from a target to a .tflite and its bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.conversion_options import conversion_options
from edgezoo_core.cli.options import (
    TARGET_HELP,
    json_option,
    print_json,
    source_options,
    verbose_option,
)
from edgezoo_core.cli.verify import FAILED, print_report
from edgezoo_core.errors import plain

if TYPE_CHECKING:
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
    force: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Convert TARGET to one .tflite with prefill and decode signatures, and bundle it."""
    with working(verbose=verbose) as stages:
        from edgezoo_core import certificate, zoo

        conversion = zoo.convert(target, force=force, progress=stages, **wanted)
        path = conversion.artifact.path
        report = certificate.verify(path, progress=stages) if is_verified else None
        stages.done()
    if as_json:
        _print_json(conversion, report)
    else:
        _print(conversion)
        if report:
            click.echo()
            print_report(report)
    if report and not report.passes:
        ctx.exit(FAILED)


def _print_json(conversion: Conversion, report: Report | None) -> None:
    print_json(
        {
            "path": str(conversion.artifact.path),
            "bundle": str(conversion.bundle) if conversion.bundle else None,
            "seconds": {k: round(v, 3) for k, v in conversion.seconds.items()},
            "peak_memory_bytes": dict(conversion.peak_memory_bytes),
            "from_cache": list(conversion.from_cache),
            "manifest": conversion.artifact.manifest,
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
