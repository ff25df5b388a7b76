"""What `convert` asks and tells of a promise."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from edgezoo_core.cli.options import F, table
from edgezoo_core.errors import RecipeError, plain
from edgezoo_core.searching.promise import Preference, Promise, parse_bytes, parse_nats, parse_share

if TYPE_CHECKING:
    from edgezoo_core.search import Found
    from edgezoo_core.searching.trials import Trial

#: Choices of a group that are shown, of those whose formats differ most.
_SHOWN = 12


class _Parsed(click.ParamType[float]):
    """A value that a function reads."""

    def __init__(self, name: str, read: Callable[[str], float]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return self._read(value)
        except ValueError as e:
            return self.fail(str(e), param, ctx)


_OPTIONS = (
    click.option(
        "--max-kl",
        type=_Parsed("nats", parse_nats),
        metavar="NATS",
        help="Promise: mean KL divergence from the checkpoint, in nats. The recipe is looked for.",
    ),
    click.option(
        "--max-ppl-increase",
        type=_Parsed("share", parse_share),
        metavar="SHARE",
        help="Promise: growth of the perplexity, `1%` say.",
    ),
    click.option(
        "--target-size",
        "max_bytes",
        type=_Parsed("size", parse_bytes),
        metavar="SIZE",
        help="Promise: size of the .tflite, `700MB` say.",
    ),
    click.option(
        "--prefer",
        type=click.Choice(get_args(Preference)),
        help="What is least of all files that keep the promise.  [default: size]",
    ),
    click.option(
        "--held-out",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="A text that the promise is examined on.  [default: a carried one]",
    ),
    click.option(
        "--plot",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="A .png to draw: size against error of what was found.",
    ),
)


def promise_options(command: F) -> F:
    """Adds what may be lost; the command gets `promise`, None if nothing is promised."""

    @wraps(command)
    def collecting(
        *arguments: Any,
        max_kl: float | None,
        max_ppl_increase: float | None,
        max_bytes: int | None,
        prefer: Preference | None,
        held_out: Path | None,
        plot: Path | None,
        **options: Any,
    ) -> Any:
        limits = (max_kl, max_ppl_increase, max_bytes)
        promise = None
        if any(limit is not None for limit in limits):
            promise = Promise(*limits, prefer or "size")
        elif prefer or held_out or plot:
            name = "--prefer" if prefer else "--held-out" if held_out else "--plot"
            raise click.UsageError(
                f"{name} goes with --max-kl, --max-ppl-increase or --target-size"
            )
        return command(*arguments, promise=promise, held_out=held_out, plot=plot, **options)

    for option in reversed(_OPTIONS):
        collecting = option(collecting)
    return cast("F", collecting)


def to_json(found: Found) -> dict[str, Any]:
    """Returns what a search found as plain values."""
    return {
        **found.record(),
        "recipe_file": str(found.recipe_file),
        "trials": [_trial(t) for t in found.trials],
        "chosen": found.trials.index(found.chosen),
        "groups": [
            {
                "name": group.name,
                "format": fmt,
                "options": [
                    {"format": o.format, "mean_kl": o.loss, "size_bytes": o.size_bytes}
                    for o in group.options
                ],
            }
            for group, fmt in zip(found.groups, found.chosen.formats, strict=True)
        ],
        "curve": [{"size_bytes": size, "mean_kl": loss} for size, loss in found.curve],
    }


def show(found: Found) -> None:
    """Prints what was tried, what was chosen, and why."""
    rows: list[tuple[str, ...]] = [
        (
            f"{t.size_bytes / 1e6:.1f}",
            f"{t.predicted:.4f}",
            f"{t.lost.mean_kl:.4f}",
            f"{t.lost.top1:.1%}",
            f"{t.lost.ppl_increase:+.1%}",
            "yes" if t.is_kept else "no",
            "chosen" if t is found.chosen else "",
        )
        for t in found.trials
    ]
    header = ("MB", "PREDICTED KL", "MEAN KL", "TOP-1", "PERPLEXITY", "KEPT", "")
    click.echo(table(rows, header))
    lost = found.chosen.lost
    click.echo(
        f"\n{lost.positions} tokens that nothing was calibrated on; reference perplexity"
        f" {lost.reference_perplexity:.2f}\n"
    )
    click.echo(table(_kinds(found), ("PART", "FORMATS")))
    click.echo(f"\nWhat would lose most in a coarser format, of {len(found.groups)} choices:\n")
    click.echo(table(_dearest(found), ("PART", "FORMAT", "MEAN KL", "COARSER", "MEAN KL")))
    click.echo(f"\nrecipe          {plain(str(found.recipe_file))}")
    verdict = "kept" if found.chosen.is_kept else "NOT KEPT: this is the best that can be"
    click.echo(f"promise         {_asked(found.promise)}: {verdict}")


def check(promise: Promise, engine: str) -> None:
    """Checks what can be checked before anything is done.

    Raises:
        RecipeError: The engine cannot do it.
    """
    if engine == "litert":
        raise RecipeError(
            f"litert-torch's path rounds each weight by itself, and keeps no promise"
            f" ({_asked(promise)})",
            remedy="leave out --engine litert",
        )


def _asked(promise: Promise) -> str:
    told = []
    if promise.max_kl is not None:
        told.append(f"mean KL at most {promise.max_kl:g}")
    if promise.max_ppl_increase is not None:
        told.append(f"perplexity at most {promise.max_ppl_increase:+.3g}")
    if promise.max_bytes is not None:
        told.append(f"at most {promise.max_bytes / 1e6:g} MB")
    return ", ".join(told)


def _kinds(found: Found) -> list[tuple[str, ...]]:
    """Returns for each kind of part how often it has each format."""
    counts: dict[str, dict[str, int]] = {}
    for group, fmt in zip(found.groups, found.chosen.formats, strict=True):
        kind = counts.setdefault(group.name.rpartition(".")[2], {})
        kind[fmt] = kind.get(fmt, 0) + 1
    return [
        (part, ", ".join(f"{count} {fmt}" for fmt, count in sorted(kind.items())))
        for part, kind in counts.items()
    ]


def _dearest(found: Found) -> list[tuple[str, ...]]:
    """Returns the choices whose next coarser one would lose most."""
    steps = []
    for group, fmt in zip(found.groups, found.chosen.formats, strict=True):
        names = [o.format for o in group.options]
        at = names.index(fmt)
        if at:
            here, coarser = group.options[at], group.options[at - 1]
            steps.append((coarser.loss - here.loss, group.name, here, coarser))
    steps.sort(key=lambda step: -step[0])
    return [
        (name, here.format, f"{here.loss:.5f}", coarser.format, f"{coarser.loss:.5f}")
        for _, name, here, coarser in steps[:_SHOWN]
    ]


def _trial(trial: Trial) -> dict[str, Any]:
    lost = trial.lost
    return {
        "size_bytes": trial.size_bytes,
        "predicted_kl": trial.predicted,
        "mean_kl": lost.mean_kl,
        "top1": lost.top1,
        "perplexity": lost.perplexity,
        "is_kept": trial.is_kept,
    }
