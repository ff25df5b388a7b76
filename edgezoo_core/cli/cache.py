"""cache: what earlier conversions left for later ones."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgezoo_core import cache
from edgezoo_core.cli.options import json_option, print_json, table

if TYPE_CHECKING:
    from edgezoo_core.cache import Entry

#: Characters of a key that are shown; enough to tell entries apart.
KEY_LENGTH = 12


@click.group("cache")
def cache_command() -> None:
    """Show, check or empty the cache of conversions.

    It holds traced graphs and files without weights, so that a model is traced only once. Its
    folder is $EDGEZOO_CACHE, else edgezoo in the user's cache folder. It grows up to
    $EDGEZOO_CACHE_LIMIT (4GB); then what was not used for longest goes.
    """


@cache_command.command("path")
def path_command() -> None:
    """Print the cache's folder."""
    click.echo(cache.default_root())


@cache_command.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the entries, last used first."""
    store = cache.Cache()
    entries = store.list()
    total = sum(e.size_bytes for e in entries)
    if as_json:
        print_json(
            {
                "path": str(store.root),
                "size_bytes": total,
                "limit_bytes": store.limit_bytes,
                "entries": [_facts(e) for e in entries],
            }
        )
        return
    rows: list[tuple[str, ...]] = [
        (
            e.kind,
            e.key[:KEY_LENGTH],
            _size(e.size_bytes),
            datetime.fromtimestamp(e.last_used).strftime("%Y-%m-%d %H:%M"),
            str(e.about.get("title", "")),
        )
        for e in entries
    ]
    if rows:
        click.echo(table(rows, ("KIND", "KEY", "SIZE", "LAST USED", "TITLE")))
    click.echo(f"{len(rows)} entries, {_size(total)} of at most {_size(store.limit_bytes)}")


@cache_command.command("verify")
@click.option("--remove", is_flag=True, help="Remove what is damaged.")
@json_option
@click.pass_context
def verify_command(ctx: click.Context, remove: bool, as_json: bool) -> None:
    """Check every byte; exit with 1 if one is wrong."""
    store = cache.Cache()
    found = [(at if isinstance(at, Path) else at.folder, fault) for at, fault in store.verify()]
    damaged = [folder for folder, fault in found if fault]
    if remove:
        for folder in damaged:
            store.remove(folder)
    if as_json:
        print_json(
            [
                {"kind": f.parent.name, "key": f.name, "path": str(f), "fault": fault}
                for f, fault in found
            ]
        )
    elif found:
        rows = [(f.parent.name, f.name[:KEY_LENGTH], fault or "ok") for f, fault in found]
        click.echo(table([*rows], ("KIND", "KEY", "STATE")))
    if damaged:
        hint = "removed" if remove else "`edgezoo cache verify --remove` removes them"
        click.echo(f"{len(damaged)} of {len(found)} entries damaged; {hint}", err=True)
        ctx.exit(1)


@cache_command.command("clear")
@click.option("--kind", type=click.Choice(cache.KINDS), help="Remove only these entries.")
@json_option
def clear_command(kind: cache.Kind | None, as_json: bool) -> None:
    """Remove all entries."""
    freed = cache.Cache().clear(kind)
    if as_json:
        print_json({"freed_bytes": freed})
    else:
        click.echo(f"freed {_size(freed)}")


def _facts(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "key": entry.key,
        "path": str(entry.folder),
        "size_bytes": entry.size_bytes,
        "created": _utc(entry.created),
        "last_used": _utc(entry.last_used),
        "about": dict(entry.about),
        "parts": dict(entry.parts),
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _size(size_bytes: int) -> str:
    for unit, power in (("GB", 3), ("MB", 2)):
        if size_bytes >= 1000**power:
            return f"{size_bytes / 1000**power:.1f} {unit}"
    return f"{size_bytes / 1000:.1f} kB"
