"""ZOO.toml: models x recipes x KV lengths, as cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, cast, get_args

from edgezoo_core.errors import BatchError
from edgezoo_core.shapes import KvLayout, Shapes
from edgezoo_core.tables import Table, read_table

_FOLDER = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")


@dataclass(frozen=True, slots=True)
class Cell:
    """One conversion, as ZOO.toml asks for it.

    Attributes:
        target: A model id, `org/name[@revision]`, or the path of a folder.
        recipe: Name of a recipe, or path of a recipe file; None takes the card's default.
        shapes: Those that are named; the card's otherwise.
        revision: Branch, tag or commit of the repo.
        family: Chooses between families that claim one architecture.
        card: Id of the card that describes the files.
        adapters: As `edgezoo convert --adapter` takes them.
        folder: Where in the store the files go; empty for its top.
        is_verified: Whether the file is held against its source.
        with_bundle: Whether a .litertlm is made, too, if the source has a tokenizer.
    """

    target: str
    recipe: str | None = None
    shapes: Shapes = field(default_factory=Shapes)
    revision: str | None = None
    family: str | None = None
    card: str | None = None
    adapters: tuple[str, ...] = ()
    folder: str = ""
    is_verified: bool = False
    with_bundle: bool = True

    def __str__(self) -> str:
        named = [self.target, self.recipe or "the default recipe"]
        if self.shapes.kv_cache_length:
            named.append(f"KV {self.shapes.kv_cache_length}")
        return ", ".join(named)


def read(path: Path) -> tuple[Cell, ...]:
    """Reads a matrix; paths in it are relative to its own folder.

    Raises:
        BatchError: It cannot be read; a key is missing, misspelt or of the wrong kind; or a cell
            stands twice.
    """
    table = read_table(path, BatchError, "check the path")
    common = _choices(table, path.parent, _NOTHING)
    cells: list[Cell] = []
    for row in table.tables("models"):
        target = _beside(path.parent, row.take("target", str))
        row.where = f"{path}: {target}"
        chosen = _choices(row, path.parent, common)
        source = {
            "revision": row.take("revision", str, None),
            "family": row.take("family", str, None),
            "card": row.take("card", str, None),
            "adapters": tuple(_beside(path.parent, a) for a in _names(row, "adapters", ())),
            "folder": row.take("folder", str, ""),
        }
        row.finish()
        if source["folder"] and not _FOLDER.fullmatch(source["folder"]):
            raise BatchError(
                f"{row.where}: folder {source['folder']!r} is no path within the store",
                remedy='write `folder = "name"`',
            )
        cells += _cells(target, source, chosen)
    table.finish()
    if not cells:
        raise BatchError(f"{path}: no models", remedy="add a [[models]] table")
    for cell in cells:
        if cells.count(cell) > 1:
            raise BatchError(f"{path}: {cell} stands twice", remedy="remove one")
    return tuple(cells)


@dataclass(frozen=True, slots=True)
class _Choices:
    """What holds for all models, or for one."""

    recipes: Sequence[str | None] = (None,)
    kv_cache: Sequence[int | None] = (None,)
    prefill: tuple[int, ...] | None = None
    kv_layout: KvLayout | None = None
    mask_as_input: bool | None = None
    is_verified: bool = False
    with_bundle: bool = True


_NOTHING = _Choices()


def _choices(table: Table, folder: Path, common: _Choices) -> _Choices:
    layout = table.take("kv_layout", str, common.kv_layout)
    if layout is not None and layout not in get_args(KvLayout):
        raise BatchError(
            f"{table.where}: kv_layout {layout!r} is unknown",
            remedy=f"choose {' or '.join(get_args(KvLayout))}",
        )
    return _Choices(
        [r if r is None else _recipe(folder, r) for r in _names(table, "recipes", common.recipes)],
        _lengths(table, "kv_cache", common.kv_cache),
        cast("Any", _lengths(table, "prefill", common.prefill)),
        cast("KvLayout | None", layout),
        table.take("mask_as_input", bool, common.mask_as_input),
        table.take("verify", bool, common.is_verified),
        table.take("bundle", bool, common.with_bundle),
    )


def _cells(target: str, source: dict[str, Any], chosen: _Choices) -> list[Cell]:
    # KV lengths outside: cells that share a graph stand together.
    return [
        Cell(
            target,
            recipe,
            Shapes(chosen.prefill, length, chosen.kv_layout, chosen.mask_as_input),
            is_verified=chosen.is_verified,
            with_bundle=chosen.with_bundle,
            **source,
        )
        for length, recipe in product(chosen.kv_cache, chosen.recipes)
    ]


def _names(table: Table, key: str, default: Any) -> Any:
    return table.take_names(key) if key in table.values else table.take(key, list, default)


def _lengths(table: Table, key: str, default: Any) -> Any:
    values = table.take(key, list, default)
    if values is default:
        return default
    if not values or not all(type(v) is int and v > 0 for v in values):
        raise BatchError(
            f"{table.where}: {key} is {values!r}, expected a list of positive numbers",
            remedy=f"correct `{key}`",
        )
    return tuple(values)


def _recipe(folder: Path, text: str) -> str:
    return str(folder.absolute() / Path(text).expanduser()) if text.endswith(".toml") else text


def _beside(folder: Path, text: str) -> str:
    """Returns a path that begins with `.` as seen from the matrix; all else as it is."""
    return str(folder.absolute() / text) if text.startswith(".") else text
