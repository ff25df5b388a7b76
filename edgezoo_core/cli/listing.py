"""list, info: what is here and what could be. No plugin is imported."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from edgezoo_core import plugins
from edgezoo_core.cards import ModelCard
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.errors import tame
from edgezoo_core.plugins import Plugin


@click.command("list")
@click.option("--available", is_flag=True, help="List the index: what could be installed, too.")
@json_option
@verbose_option
def list_command(available: bool, as_json: bool, verbose: bool) -> None:
    """List the models that can be converted."""
    found = plugins.discover()
    installed = {
        card.id: (card, plugin)
        for plugin in found
        if plugin.is_usable and plugin.card
        for card in plugin.card.models.values()
    }
    rows: list[dict[str, Any]] = [
        {
            "id": card.id,
            "title": card.title,
            "parameters": card.parameters,
            "license": card.license,
            "gated": card.is_gated,
            "checkpoint": card.checkpoint,
            "distribution": plugin.distribution,
            "installed": True,
        }
        for card, plugin in installed.values()
    ]
    if available:
        from edgezoo_core import registry

        rows += [
            {
                "id": entry.id,
                "title": entry.summary,
                "distribution": entry.distribution,
                "installed": False,
            }
            for entry in registry.index().values()
            if entry.id not in installed
        ]
    rows.sort(key=lambda row: row["id"])
    if as_json:
        print_json(rows)
    elif rows:
        header = ("MODEL", "PARAMETERS", "LICENSE", "FROM", "TITLE")
        click.echo(table([_row(row) for row in rows], header))
    _hint(found, is_empty=not rows)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    if not row["installed"]:
        return (row["id"], "", "", f"pip install {row['distribution']}", row["title"])
    gated = " (gated)" if row["gated"] else ""
    return (
        row["id"],
        f"{row['parameters'] / 1e9:.2f} B",
        row["license"] + gated,
        row["distribution"],
        row["title"],
    )


def _hint(found: tuple[Plugin, ...], *, is_empty: bool) -> None:
    broken = [p for p in found if p.state not in ("ok", "disabled")]
    for plugin in broken:
        told = f"{plugin.family} ({plugin}) is {plugin.state}: {plugin.reason}"
        click.echo(tame(told), err=True)
    if is_empty:
        click.echo("No model plugin is usable here; see `edgezoo list --available`.", err=True)


@click.command("info")
@click.argument("model")
@json_option
@verbose_option
def info_command(model: str, as_json: bool, verbose: bool) -> None:
    """Show the card of MODEL."""
    from edgezoo_core import targets

    found = plugins.discover()
    card = targets.find_card(model, found)
    owner = next(p for p in found if p.is_usable and p.card and model in p.card.models)
    if as_json:
        print_json({**asdict(card), "family": owner.family, "distribution": owner.distribution})
        return
    for name, value in _facts(card, owner):
        click.echo(f"{name:<16}{value}")


def _facts(card: ModelCard, owner: Plugin) -> list[tuple[str, str]]:
    shapes = card.signatures
    mask = "an input" if shapes.mask_as_input else "built in"
    return [
        ("model", f"{card.id} ({card.title})"),
        ("family", f"{owner.family}, from {owner}"),
        ("checkpoint", f"{card.checkpoint}@{card.revision}"),
        ("license", card.license + (", gated" if card.is_gated else "")),
        ("parameters", f"{card.parameters:,}"),
        ("context", f"{card.context_length:,} tokens"),
        ("recipes", ", ".join(r + "*" * (r == card.default_recipe) for r in card.recipes)),
        ("prefill", ", ".join(map(str, shapes.prefill_lengths))),
        ("KV cache", f"{shapes.kv_cache_length}, {shapes.kv_layout} layout, mask {mask}"),
        ("convert", f"edgezoo convert {card.id}"),
    ]
