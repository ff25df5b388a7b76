"""The index: which distribution brings a model that is not installed. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgezoo_core.errors import CardError
from edgezoo_core.tables import read_table


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of the index: a model, its family, and the distribution that brings both."""

    id: str
    family: str
    distribution: str
    summary: str


def read_index(path: Path) -> dict[str, IndexEntry]:
    """Reads a `registry.toml`: entries by model id.

    Raises:
        CardError: It cannot be read, a key is missing, misspelt, or of the wrong kind, or two
            distributions claim one family.
    """
    table = read_table(path)
    entries: dict[str, IndexEntry] = {}
    owners: dict[str, str] = {}
    for row in table.tables("models"):
        entry = IndexEntry(
            id=row.take("id", str),
            family=row.take("family", str),
            distribution=row.take("distribution", str),
            summary=row.take("summary", str),
        )
        row.finish()
        if entry.id in entries:
            raise CardError(f"{path}: {entry.id} stands twice", remedy="remove one")
        owner = owners.setdefault(entry.family, entry.distribution)
        if owner != entry.distribution:
            raise CardError(
                f"{path}: family {entry.family} is claimed by {owner} and {entry.distribution}",
                remedy="rename one family",
            )
        entries[entry.id] = entry
    table.finish()
    return entries


@cache
def index() -> Mapping[str, IndexEntry]:
    """Returns the index that this installation carries."""
    package = Path(__file__).parent
    # A wheel carries the file inside the package; an editable install has it one folder up.
    inside = package / "registry.toml"
    return read_index(inside if inside.is_file() else package.parent / "registry.toml")
