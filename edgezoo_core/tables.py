"""TOML files with a schema, whose keys are taken one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgezoo_core import texts
from edgezoo_core.errors import CardError, EdgezooError, listing, nearest

#: Version of the layout of models.toml, registry.toml and ZOO.toml.
SCHEMA = 1

_KINDS = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


class Table:
    """A TOML table whose keys are taken one by one, so that a leftover is a misspelling.

    Args:
        values: As tomllib reads them.
        where: Names the table in messages.
        error: What is raised.
    """

    def __init__(
        self, values: dict[str, Any], where: str, error: type[EdgezooError] = CardError
    ) -> None:
        self.values = values
        self.where = where
        self.error = error
        self.known: set[str] = set()

    def take(self, key: str, kind: type, default: Any = ...) -> Any:
        """Returns the value of a key, of this kind; the default if it is not there.

        Raises:
            EdgezooError: It is missing and has no default, or is of another kind.
        """
        self.known.add(key)
        if key not in self.values:
            if default is not ...:
                return default
            raise self.error(f"{self.where}: {key} is missing", remedy=f"add `{key} = …`")
        value = self.values[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(
                f"{self.where}: {key} is {value!r}, expected {_KINDS[kind]}",
                remedy=f"correct `{key}`",
            )
        return value

    def take_names(self, key: str) -> tuple[str, ...]:
        """Returns a list of names, at least one."""
        values = self.take(key, list)
        if not values or not all(isinstance(v, str) and v for v in values):
            raise self.error(
                f"{self.where}: {key} is {values!r}, expected a list of names",
                remedy=f"correct `{key}`",
            )
        return tuple(values)

    def tables(self, key: str) -> list[Table]:
        """Returns the tables `[[key]]`."""
        rows = self.take(key, list)
        if not all(isinstance(row, dict) for row in rows):
            raise self.error(f"{self.where}: {key} must be tables", remedy=f"write [[{key}]]")
        return [
            Table(row, f"{self.where}: {key}[{row.get('id', i)}]", self.error)
            for i, row in enumerate(rows)
        ]

    def finish(self) -> None:
        """Refuses what was not taken."""
        unknown = sorted(self.values.keys() - self.known)
        if unknown:
            guess = nearest(unknown[0], self.known)
            raise self.error(
                f"{self.where}: unknown key {listing(unknown)}",
                remedy=f"did you mean `{guess}`?" if guess else "remove it",
            )


def read_table(
    path: Path,
    error: type[EdgezooError] = CardError,
    absent: str = "reinstall the distribution",
) -> Table:
    """Reads a TOML file that begins with `schema`.

    Args:
        path: The file.
        error: What is raised, here and by the table.
        absent: What to do if it cannot be read.
    """
    try:
        values = texts.read_toml(path)
    except OSError as e:
        raise error(f"{path}: {e.strerror or e}", remedy=absent) from e
    except ValueError as e:
        raise error(f"{path}: not TOML: {e}", remedy="correct the file") from e
    table = Table(values, str(path), error)
    schema = table.take("schema", int)
    if schema != SCHEMA:
        raise error(
            f"{path}: schema {schema}, expected {SCHEMA}",
            remedy="upgrade edgezoo-core" if schema > SCHEMA else f"set schema = {SCHEMA}",
        )
    return table
