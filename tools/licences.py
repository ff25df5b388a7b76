"""The licences of all that edgezoo brings along, each extra included; pip-licenses reads them.

python tools/licences.py            print the table
python tools/licences.py --check    fail on a licence that tools/licences.toml does not allow
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "tools" / "licences.toml"
PROJECTS = (ROOT, *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml")))
#: The extras for developers of this project; the fuzzer is not even in their usual environment.
APART = ("dev", "fuzz")


@dataclass(frozen=True, slots=True)
class Row:
    """A distribution that comes along, its licence by SPDX, and what there is to say of it.

    Attributes:
        fault: Why it may not come along, empty if it may.
    """

    name: str
    version: str
    licence: str
    note: str
    fault: str


def required(project: Path, extras: Iterable[str] | None = None) -> list[Requirement]:
    """Returns what a project of this repo requires, as its pyproject.toml says.

    Args:
        project: Its folder.
        extras: The extras to take; None takes all for users.
    """
    table = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = table.get("optional-dependencies", {})
    chosen = [e for e in optional if e not in APART] if extras is None else extras
    texts = [*table.get("dependencies", []), *(t for e in chosen for t in optional[e])]
    return [Requirement(text) for text in texts]


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """Returns the names of all distributions that these bring along; edgezoo's own are left out."""
    own = {canonicalize_name(_name(project)): project for project in PROJECTS}
    seen: set[tuple[str, frozenset[str]]] = set()
    left = list(requirements)
    while left:
        requirement = left.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name in own:
            left += required(own[name], sorted(extras))
            continue
        for text in metadata.requires(name) or []:
            inner = Requirement(text)
            wanted = ("", *extras)
            if not inner.marker or any(inner.marker.evaluate({"extra": e}) for e in wanted):
                left.append(inner)
    return {name for name, _ in seen} - own.keys()


def rows(names: Iterable[str]) -> list[Row]:
    """Returns a row for each distribution, in the order of their names."""
    rules = tomllib.loads(RULES.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json"]
    command += ["--with-system", "--packages", *sorted(names)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found: dict[str, Any] = {canonicalize_name(d["Name"]): d for d in json.loads(answer.stdout)}
    return [_row(name, found.get(name, {}), rules) for name in sorted(names)]


def _row(name: str, found: Mapping[str, Any], rules: Mapping[str, Any]) -> Row:
    version, said = str(found.get("Version", "")), str(found.get("License", "not installed"))
    if name in rules["known"]:
        known = rules["known"][name]
        texts = "\n".join(_texts(name, known["file"])) if "file" in known else said
        is_same = known["says"] in texts
        fault = "" if is_same else f"{name}: the text of its licence is another than it was"
        return Row(name, version, known["licence"], known["reason"], fault)
    parts = [rules["names"].get(p, p.strip("()")) for p in _parts(said)]
    notes = [rules["noted"][part] for part in parts if part in rules["noted"]]
    wrong = [p for p in parts if p not in rules["allowed"] and p not in rules["noted"]]
    fault = f"{name} {version}: {', '.join(wrong)[:80]}" if wrong else ""
    said = said if said in parts else " AND ".join(dict.fromkeys(parts))
    return Row(name, version, said, "; ".join(notes), fault)


def _parts(text: str) -> list[str]:
    """Returns the licences in an expression of SPDX, or in a list of classifiers.

    Of alternatives, each must be allowed: stricter than need be, and simple.
    """
    return [p.strip() for p in re.split(r"\s+(?:AND|OR)\s+|;", text)]


def _texts(name: str, file: str) -> Iterator[str]:
    for path in metadata.files(name) or []:
        if path.name == file:
            yield path.read_text(encoding="utf-8")


def table(found: Sequence[Row]) -> str:
    """Returns the rows as a table of Markdown."""
    head = ["| distribution | version | licence | note |", "| --- | --- | --- | --- |"]
    return "\n".join(
        [*head, *(f"| {r.name} | {r.version} | {r.licence} | {r.note} |" for r in found)]
    )


def _name(project: Path) -> str:
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["name"])


def main() -> None:
    """Prints or checks the table."""
    found = rows(closure(r for project in PROJECTS for r in required(project)))
    faults = [row.fault for row in found if row.fault]
    if "--check" not in sys.argv:
        print(table(found))
    if faults:
        sys.exit("not allowed by tools/licences.toml:\n" + "\n".join(faults))


if __name__ == "__main__":
    main()
