"""Writes the generated parts of README.md: what stands between `<!-- begin NAME -->` and `end`.

python tools/readme.py            write them
python tools/readme.py --check    fail if one is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from edgezoo_core import cards, hookspecs, recipe
from edgezoo_core.cli import main as edgezoo

ROOT = Path(__file__).resolve().parents[1]
FILES = (ROOT / "README.md", *sorted(ROOT.glob("plugins/**/README.md")))
CARDS = sorted(ROOT.glob("plugins/*/edgezoo_*/models.toml"))
PART = re.compile(r"(<!-- begin (?P<name>[\w-]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)


def models() -> str:
    """Table of all models of the plugins in this repo."""
    return _models(CARDS)


def recipes() -> str:
    """Table of the recipes by name."""
    return _table(
        ("recipe", "what it does"),
        [(f"`{n}`" + " (default)" * (n == recipe.DEFAULT), d) for n, d in recipe.RECIPES.items()],
    )


def formats() -> str:
    """The formats that a recipe file may name."""
    return ", ".join(f"`{name}`" for name in recipe.FORMATS) + "\n"


def commands() -> str:
    """Help text of every command."""
    context = click.Context(edgezoo, info_name="edgezoo")
    texts = []
    for name in edgezoo.list_commands(context):
        command = edgezoo.get_command(context, name)
        if command is None:
            raise SystemExit(f"no command {name}")
        child = click.Context(command, info_name=name, parent=context, terminal_width=96)
        texts.append(f"```text\n$ edgezoo {name} --help\n{command.get_help(child)}\n```\n")
    return "\n".join(texts)


def hooks() -> str:
    """Table of the hooks: arguments, what they return, first line of their docs."""
    rows = []
    for name, spec in vars(hookspecs).items():
        if hasattr(spec, "edgezoo_spec"):
            arguments = ", ".join(inspect.signature(spec).parameters)
            summary = (spec.__doc__ or "").splitlines()[0]
            has_default = "no" if name in ("author", "tensor_names") else "yes"
            rows.append((f"`{name}({arguments})`", summary, has_default))
    return _table(("hook", "what it does", "core default"), rows)


def _models(paths: list[Path]) -> str:
    rows = []
    for path in paths:
        for card in cards.read_family(path).models.values():
            gated = ", gated" if card.is_gated else ""
            size = f"{card.parameters / 1e9:.2f} B"
            distribution = f"`{path.parents[1].name}`"
            rows.append((f"`{card.id}`", card.checkpoint, size, card.license + gated, distribution))
    return _table(("model", "checkpoint", "parameters", "licence", "package"), rows)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def generate(path: Path) -> str:
    """Returns a README with its generated parts made anew."""
    parts = {"models": models, "recipes": recipes, "formats": formats, "commands": commands}
    parts["hooks"] = hooks
    parts["own-models"] = lambda: _models([p for p in CARDS if path.parent in p.parents])

    def fill(match: re.Match[str]) -> str:
        return match[1] + parts[match["name"]]() + match[3]

    return PART.sub(fill, path.read_text(encoding="utf-8"))


def main() -> None:
    """Writes the files, or with --check compares them."""
    stale = []
    for path in FILES:
        text = generate(path)
        if text != path.read_text(encoding="utf-8"):
            stale.append(path.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"out of date: {', '.join(stale)}; run: python dev.py docs")


if __name__ == "__main__":
    main()
