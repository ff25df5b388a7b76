"""author: the mapped model, before any conversion."""

from __future__ import annotations

import pprint
from dataclasses import asdict
from typing import Any

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
        stages("importing the libraries")
        from edgezoo_core import parity, zoo
        from edgezoo_core.model import materialize

        source = zoo.obtain(target, revision=revision, family=family, card=card, progress=stages)
        stages("building the model")
        module: Any = materialize(source.author(), stages)
        stages("running sample tokens")
        tokens = parity.sample_tokens(module.config.vocab_size)
        logits = parity.run(module, tokens)
        difference = None
        if compare:
            stages("running transformers on the same tokens")
            difference = parity.compare(source.checkpoint, logits, tokens)
        stages.done()
    parts = parity.parameters_by_part(module)
    if as_json:
        print_json(
            {
                "source": source.model.source,
                "family": source.model.family,
                "parameters": dict(parts),
                "logits_shape": list(logits.shape),
                "difference": asdict(difference) if difference else None,
            }
        )
        return
    click.echo(pprint.pformat(module.config, width=100))
    rows = [(part, f"{count:,}") for part, count in parts.items()]
    click.echo(table([*rows, ("total", f"{sum(parts.values()):,}")], ("PART", "PARAMETERS")))
    click.echo(f"logits          {list(logits.shape)}, largest {logits.abs().max():.4g}")
    if difference:
        click.echo(
            f"transformers    largest difference {difference.largest:.3g} of"
            f" {difference.scale:.4g}, same choice at {difference.same_choice:.0%} of positions"
        )
