"""new-plugin: a distribution for a new family, drafted from a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgezoo_core import plugins, registry
from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.errors import plain
from edgezoo_core.plugins import Plugin

if TYPE_CHECKING:
    from edgezoo_core.scaffold.card import CardDraft
    from edgezoo_core.scaffold.draft import Draft
    from edgezoo_core.scaffold.identity import Identity
    from edgezoo_core.scaffold.source import Source
    from edgezoo_core.types import Progress


@click.command("new-plugin")
@click.argument("family")
@click.option(
    "--from",
    "origin",
    metavar="REPO[@REV]|FOLDER",
    help="The checkpoint to draft it from; only config.json and headers are read.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where the plugin's folder is made.  [default: this folder]",
)
@json_option
@verbose_option
def new_plugin_command(
    family: str, origin: str | None, output: Path, as_json: bool, verbose: bool
) -> None:
    """Write a plugin for FAMILY: card, author, tensor names, tests.

    Without --from it is a plain Llama, which passes its tests as it is.
    """
    with working(verbose=verbose) as stages:
        from edgezoo_core.scaffold import identity, writing
        from edgezoo_core.scaffold.card import draft_card
        from edgezoo_core.scaffold.draft import draft as draft_author

        found = plugins.discover()
        names = identity.identify(family, found)
        source = _source(origin, names, found, stages)
        architectures = source.architectures
        stages("drafting the author")
        draft = draft_author(source)
        taken = {*registry.index(), *(i for p in found if p.card for i in p.card.models)}
        card = draft_card(draft.facts, names, taken)
        stages("writing the plugin")
        files = writing.write(names, draft, card, output)
        stages.done()
    rivals = [p.family for p in found if p.card and set(p.card.architectures) & set(architectures)]
    report = _report(names, draft, card, files, _next(names, origin, card, files, rivals))
    if as_json:
        print_json(report)
    else:
        click.echo("\n\n".join(_sections(report)))


def _source(
    origin: str | None, names: Identity, found: Sequence[Plugin], progress: Progress
) -> Source:
    from edgezoo_core import targets
    from edgezoo_core.scaffold import hub_source
    from edgezoo_core.scaffold import source as sources

    if origin is None:
        return sources.plain_llama(names)
    target = targets.parse(origin, found)
    if target.folder:
        return sources.from_folder(target.folder, progress=progress)
    return hub_source.from_hub(str(target.repo), target.revision, progress=progress)


def _next(
    names: Identity,
    origin: str | None,
    card: CardDraft,
    files: Sequence[Path],
    rivals: Sequence[str],
) -> list[str]:
    """Returns the commands to run next."""
    folder = files[0].parent
    path = str(folder) if folder.is_absolute() else f"./{folder}"
    target = shlex.quote(origin or card.checkpoint)
    family = f" --family {names.family}" if rivals else ""
    return [
        f"pip install --editable {shlex.quote(path + '[test]')}",
        "edgezoo plugins",
        f"edgezoo plugins test {names.family}",
        f"edgezoo author {target}{family} --compare",
        f"edgezoo convert {target}{family}",
    ]


def _report(
    names: Identity,
    draft: Draft,
    card: CardDraft,
    files: Sequence[Path],
    commands: Sequence[str],
) -> dict[str, Any]:
    source, left = draft.facts.source, draft.leftovers
    return {
        "family": names.family,
        "distribution": names.distribution,
        "folder": str(files[0].parent),
        "files": [str(path) for path in files],
        "source": source.repo,
        "read": list(source.read),
        "unread": source.unread,
        "placed": dict(draft.facts.names.placed),
        "unplaced": [
            {"name": u.name, "shape": list(u.shape), "reason": u.reason}
            for u in draft.facts.names.unplaced
        ],
        "missing": list(draft.facts.names.missing),
        "pinned": dict(left.pinned),
        "undecided": [
            {"name": u.name, "value": u.value, "reason": u.reason} for u in left.undecided
        ],
        "to_fill_in": list(card.to_fill_in),
        "next": list(commands),
    }


def _sections(report: dict[str, Any]) -> list[str]:
    sections = [_section("written", report["files"])]
    if report["read"]:
        sections.append(_section("read", report["read"]))
    title = "tensor names, not seen" if report["unread"] else "tensor names"
    sections.append(_section(title, _columns(report["placed"].items())))
    if report["unread"]:
        sections[-1] += f"\n  ({report['unread']})"
    unplaced = [(u["name"], str(u["shape"]), u["reason"]) for u in report["unplaced"]]
    missing = [(name,) for name in report["missing"]]
    pinned = report["pinned"].items()
    undecided = [(u["name"], _short(u["value"]), u["reason"]) for u in report["undecided"]]
    for name, rows in (
        ("could not be placed: conversion refuses until they are", unplaced),
        ("parts that no tensor was found for", missing),
        ("config fields allowed at this value only", pinned),
        ("config fields to decide about", undecided),
    ):
        if rows:
            sections.append(_section(name, _columns(rows)))
    if report["to_fill_in"]:
        sections.append(_section("to fill in in models.toml", report["to_fill_in"]))
    sections.append(_section("next", report["next"]))
    return sections


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _columns(rows: Any) -> list[str]:
    # A checkpoint's own words: a terminal must not obey them.
    first, *rest = [tuple(plain(cell) for cell in row) for row in rows] or [()]
    return table(rest, first).splitlines() if first else []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
