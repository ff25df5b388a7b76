"""batch: a matrix of conversions, on this machine or on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgezoo_core.cache.settings import parse_size
from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.cli.verify import FAILED
from edgezoo_core.errors import plain, tame

if TYPE_CHECKING:
    from edgezoo_core.batch import Engine, Run
    from edgezoo_core.types import Progress


class _Size(click.ParamType[int]):
    """Bytes, written as 8GB or 500MB."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        size = parse_size(str(value))
        return size if size else self.fail(f"{value!r} is no size; write 8GB, say", param, ctx)


@click.command("batch")
@click.argument("matrix", metavar="ZOO.toml", type=click.Path(path_type=Path))
@click.option(
    "--output",
    metavar="FOLDER|URL",
    default=".",
    help="The artifact store: a folder, or a URL that fsspec opens.  [default: this folder]",
)
@click.option("--dry-run", is_flag=True, help="Plan, and say what is there already; make nothing.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Conversions at the same time.  [default: what cores and memory allow]",
)
@click.option(
    "--memory",
    metavar="SIZE",
    type=_Size(),
    help="What all conversions together may take, 8GB say.  [default: what is free]",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Workers of one conversion that trace side by side.  [default: its share of the cores; on"
    " Ray 1, and as many CPUs]",
)
@click.option(
    "--address",
    help="Run on the Ray cluster at this address; `local` starts one on this machine.",
)
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the HTML page to this path, too.",
)
@json_option
@verbose_option
@click.pass_context
def batch_command(
    ctx: click.Context,
    matrix: Path,
    output: str,
    dry_run: bool,
    workers: int | None,
    memory: int | None,
    jobs: int | None,
    address: str | None,
    page: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Convert the matrix in ZOO.toml: models x recipes x KV lengths.

    What is in the store already is not made again, so the same command goes on where it stopped.
    Exit code 1 says that cells are missing, 3 that all are there and some are not the model any
    more.
    """
    if address and (workers or memory):
        raise click.UsageError("--workers and --memory are of this machine, not of a Ray cluster")
    with working(verbose=verbose) as stages:
        from edgezoo_core import batch
        from edgezoo_core.batch import report as reports

        if address:
            jobs = jobs or 1
        run = batch.open_run(
            matrix,
            batch.Store(output),
            jobs=jobs,
            is_here=not address,
            is_full=dry_run,
            progress=stages,
        )
        if dry_run:
            stages.done()
            _print_plan(run, as_json=as_json)
            return
        if run.left:
            run.make(_engine(run, address, workers, memory, stages), stages)
        stages("writing the report")
        report = reports.to_json(run)
        reports.keep(run, report)
        if page:
            page.write_text(reports.to_html(report), encoding="utf-8")
        stages.done()
    if as_json:
        print_json(report)
    else:
        _print(report)
    if run.is_interrupted:
        raise click.Abort
    outcomes = run.all()
    if any(outcome.record is None for outcome in outcomes):
        ctx.exit(1)
    if not all(outcome.passes for outcome in outcomes):
        ctx.exit(FAILED)


def _engine(
    run: Run,
    address: str | None,
    workers: int | None,
    memory: int | None,
    progress: Progress,
) -> Engine:
    from edgezoo_core import batch

    if address:
        return batch.ray_engine(run, address, progress=progress)
    return batch.local_engine(run, processes=workers, memory_bytes=memory)


def _print_plan(run: Run, *, as_json: bool) -> None:
    from edgezoo_core.batch import report as reports

    plan = reports.plan_to_json(run)
    if as_json:
        print_json(plan)
        return
    lines = [tuple(plain(value) for value in row) for row in reports.plan_rows(plan)]
    click.echo(table(lines, reports.PLAN_HEADER))
    click.echo(f"\nto download     {plan['download_bytes'] / 1e9:.2f} GB")
    _print_errors(plan)


def _print(report: dict[str, Any]) -> None:
    from edgezoo_core.batch import report as reports

    lines = [tuple(plain(value) for value in row) for row in reports.rows(report)]
    click.echo(table(lines, reports.HEADER))
    _print_errors(report)
    click.echo(f"\nstore           {report['store']}")


def _print_errors(report: dict[str, Any]) -> None:
    for cell in report["cells"]:
        if cell["error"]:
            told = f"{cell['name']}: {cell['error']['message']}\nFix: {cell['error']['remedy']}"
            click.echo(f"\n{tame(told)}", err=True)
