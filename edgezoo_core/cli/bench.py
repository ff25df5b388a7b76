"""bench: how fast a converted file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.errors import plain

if TYPE_CHECKING:
    from edgezoo_core.benchmark.figures import Report, Spread
    from edgezoo_core.benchmark.plan import Engine

_Rows = list[tuple[str, ...]]

#: What the files are called in the tables.
_NAMES = "AB"
_SPEED_HEADER = (
    "FILE", "THREADS", "DEPTH", "PREFILL", "PREFILL tokens/s", "DECODE tokens/s", "FIRST TOKEN ms"
)  # fmt: skip
_COST_HEADER = ("FILE", "THREADS", "LOAD s", "PEAK MB", "OF THAT PRIVATE", "BEFORE LOADING")
_RATIO_HEADER = ("THREADS", "DEPTH", "PREFILL", "PREFILL A/B", "DECODE A/B")


@click.command("bench")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Another file; the two take turns, and are compared pair by pair.",
)
@click.option(
    "--prefill",
    type=click.IntRange(min=1),
    multiple=True,
    default=(128,),
    show_default=True,
    help="Tokens of the prompt; repeatable.",
)
@click.option(
    "--decode",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Tokens of the answer.",
)
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    multiple=True,
    help="Tokens in the KV cache before the prompt; repeatable.  [default: 0; a few with --plot]",
)
@click.option(
    "--threads", type=click.IntRange(min=1), multiple=True, help="Repeatable; default: all cores."
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Fresh processes for each file and number of threads.",
)
@click.option(
    "--engine",
    type=click.Choice(["interpreter", "litert-lm"]),
    help="What runs it; default: LiteRT-LM for a .litertlm, else LiteRT's interpreter.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="A .png to draw decode speed and memory into, by tokens in the cache.",
)
@json_option
@verbose_option
def bench_command(
    file: Path,
    against: Path | None,
    prefill: tuple[int, ...],
    decode: int,
    depth: tuple[int, ...],
    threads: tuple[int, ...],
    runs: int,
    engine: str | None,
    plot: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure FILE, a .tflite or .litertlm: speed, time to load, memory.

    Each run is a fresh process, and one round before them does not count. Run it alone: what
    shares the machine shares its speed.
    """
    with working(verbose=verbose) as stages:
        from edgezoo_core import benchmark, drawing
        from edgezoo_core.benchmark import chart
        from edgezoo_core.benchmark import plan as plans

        if plot:
            drawing.check(plot)
        asked = plans.plan(
            [file, *([against] if against else [])],
            threads=threads,
            prefill=prefill,
            depth=depth or (None if plot else (0,)),
            decode=decode,
            runs=runs,
            engine=cast("Engine | None", engine),
        )
        found = benchmark.run(asked, stages)
        if plot:
            stages("drawing the chart")
            chart.draw(found, plot)
        stages.done()
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)


def _print(found: Report) -> None:
    asked = found.plan
    for name, subject, first in zip(_NAMES, asked.subjects, found.first_loads_s, strict=False):
        click.echo(f"{name}               {plain(str(subject.path))}")
        twice = ", which reads the prompt twice" if subject.prompt_copies > 1 else ""
        click.echo(f"                {subject.engine}{twice}; first loaded in {first:.2f} s")
    click.echo(f"runs            {asked.runs}, {asked.decode} tokens decoded in each")
    click.echo("figures         median (lowest to highest)\n")
    click.echo(table(_speeds(found), _SPEED_HEADER))
    click.echo("\n" + table(_costs(found), _COST_HEADER))
    if found.ratios:
        click.echo("\n" + table(_ratios(found), _RATIO_HEADER))


def _speeds(found: Report) -> _Rows:
    return [
        (
            _NAMES[line.subject],
            str(line.threads),
            str(line.point.depth),
            str(line.point.prefill),
            _show(line.prefill_per_s),
            _show(line.decode_per_s),
            _show(line.first_token_s, 1e-3),
        )
        for line in found.lines
    ]


def _costs(found: Report) -> _Rows:
    return [
        (
            _NAMES[cost.subject],
            str(cost.threads),
            _show(cost.load_s),
            _show(cost.resident_bytes, 1e6),
            _show(cost.private_bytes, 1e6) if cost.private_bytes else "not told",
            _show(cost.before_bytes, 1e6),
        )
        for cost in found.costs
    ]


def _ratios(found: Report) -> _Rows:
    return [
        (
            str(ratio.threads),
            str(ratio.point.depth),
            str(ratio.point.prefill),
            _show(ratio.prefill),
            _show(ratio.decode),
        )
        for ratio in found.ratios
    ]


def _show(found: Spread, unit: float = 1.0) -> str:
    """Writes three digits, or as many as stand before the point."""
    median, low, high = (_digits(v / unit) for v in (found.median, found.low, found.high))
    return f"{median} ({low}-{high})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
