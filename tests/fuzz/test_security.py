"""SECURITY.md names tests that there are, and each of its promises names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`((?:tests|plugins)/[\w/.-]+\.py)::(\w+)`", TEXT)


def functions(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_is_there():
    assert len(NAMED) > 20
    files = {file: functions(file) for file, _ in NAMED}
    assert [f"{file}::{name}" for file, name in NAMED if name not in files[file]] == []


def test_every_promise_names_a_test():
    table = TEXT.partition("## Promises")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    rows = [row for row in rows if not row.startswith("| ---")]
    assert len(rows) > 10
    assert [row for row in rows if "::test_" not in row] == []
