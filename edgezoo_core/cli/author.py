"""author: the mapped model, before any conversion."""

from __future__ import annotations

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import (
    TARGET_HELP,
    json_option,
    print_json,
    source_options,
    table,
    verbose_option,
)


@click.command("author", epilog=TARGET_HELP)
@click.argument("target")
@click.option("--compare", is_flag=True, help="Run transformers' own model on the same tokens.")
@source_options
@json_option
@verbose_option
def author_command(
    target: str,
    compare: bool,
    revision: str | None,
    family: str | None,
    card: str | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Build the re-authored model of TARGET, load it, and run it on sample tokens."""
    with working(verbose=verbose) as stages:
        from edgezoo_core import sources, zoo

        source = sources.obtain(
            target, revision=revision, family=family, card=card, progress=stages
        )
        authored = zoo.author(source, is_compared=compare, progress=stages)
        stages.done()
    parts, difference = authored["parameters"], authored["difference"]
    if as_json:
        print_json(
            {
                "source": source.model.source,
                "family": source.model.family,
                "parameters": parts,
                "logits_shape": authored["logits_shape"],
                "difference": difference,
            }
        )
        return
    click.echo(authored["config"])
    rows = [(part, f"{count:,}") for part, count in parts.items()]
    click.echo(table([*rows, ("total", f"{sum(parts.values()):,}")], ("PART", "PARAMETERS")))
    click.echo(f"logits          {authored['logits_shape']}, largest {authored['largest']:.4g}")
    if difference:
        click.echo(
            f"transformers    largest difference {difference['largest']:.3g} of"
            f" {difference['scale']:.4g},"
            f" same choice at {difference['same_choice']:.0%} of positions"
        )
