"""verify: a converted file against the model that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option

if TYPE_CHECKING:
    from edgezoo_core.certificate import Reference
    from edgezoo_core.runtime import Runtime
    from edgezoo_core.verification.report import Report

#: Exit code of a file that was examined and does not pass.
FAILED = 3


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    type=click.Choice(["transformers", "authored"]),
    default="transformers",
    show_default=True,
    help="What is right: transformers' own implementation, or the re-authored module.",
)
@click.option(
    "--runtime",
    type=click.Choice(["litert", "tensorflow"]),
    default="litert",
    show_default=True,
    help="What runs FILE.",
)
@click.option(
    "--text", type=click.Path(path_type=Path), help="What is read; default: a carried sample."
)
@click.option("--max-kl", type=click.FloatRange(min=0), help="Largest mean KL in nats that passes.")
@click.option(
    "--structure/--no-structure",
    "with_structure",
    default=True,
    help="Make the same graph in float32, and examine it, too.",
)
@json_option
@verbose_option
@click.pass_context
def verify_command(
    ctx: click.Context,
    file: Path,
    reference: str,
    runtime: str,
    text: Path | None,
    max_kl: float | None,
    with_structure: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Hold FILE, a converted .tflite, against its source: graph, weights, outputs.

    Exit code 3 says that it was examined and does not pass.
    """
    with working(verbose=verbose) as stages:
        from edgezoo_core import certificate

        report = certificate.verify(
            file,
            reference=cast("Reference", reference),
            runtime=cast("Runtime", runtime),
            text=text,
            max_kl=max_kl,
            with_structure=with_structure,
            progress=stages,
        )
        stages.done()
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    if not report.passes:
        ctx.exit(FAILED)


def print_report(report: Report) -> None:
    """Prints a certificate for a person."""
    from edgezoo_core.verification.report import nearness

    loss = report.outputs.loss
    rows: list[tuple[str, ...]] = []
    if report.structure:
        found = report.structure
        rows.append(
            (
                "structure",
                _verdict(found.passes),
                f"float32 graph differs by {found.relative_difference:.1e} of the norm"
                f" (allowed {found.bound:.0e})"
                + (f", first in {found.diverges}" if found.diverges else ""),
            )
        )
    stored = report.weights
    near = nearness(stored.largest, is_compensated=stored.is_compensated)
    rows.append(
        (
            "weights",
            _verdict(stored.passes),
            f"{stored.matrices} tensors, {near}"
            + (f"; not: {stored.bad[0]}" if stored.bad else ""),
        )
    )
    rows.append(
        (
            "outputs",
            _verdict(report.outputs.passes),
            f"mean KL {loss.mean_kl:.2e} nats (allowed {report.outputs.max_kl:.3g})",
        )
    )
    click.echo(table(rows, ("PART", "VERDICT", "FOUND")))
    click.echo(
        f"\nreference       {report.reference}, float32; {report.tokens} tokens of {report.text};"
        f" the file in {report.runtime}"
    )
    click.echo(f"99th percentile {loss.p99_kl:.2e} nats")
    click.echo(f"same choice     {loss.top1:.1%} first, {loss.top5:.1%} of the first five")
    click.echo(
        f"perplexity      {loss.subject_perplexity:.2f}, reference {loss.reference_perplexity:.2f}"
    )
    click.echo(
        f"logits          differ by {loss.largest_difference:.3g} at most,"
        f" {loss.mean_difference:.3g} on average"
    )
    parted = ", ".join(f"{same} of {count}" for same, count in report.outputs.same_tokens)
    click.echo(f"greedy answers  equal for {parted} tokens")
    far = report.outputs.farthest_layer
    for name, held in report.memory_bytes.items():
        private = f", {held['private'] / 1e9:.2f} of it private" if held["private"] else ""
        click.echo(f"memory          {name}: {(held['resident'] or 0) / 1e9:.2f} GB{private}")
    click.echo(f"farthest cache  layer {far.layer}: keys {far.keys:.1%}, values {far.values:.1%}")


def _verdict(passes: bool) -> str:
    return "passes" if passes else "FAILS"
