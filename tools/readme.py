"""Writes the generated parts of README.md: what stands between `<!-- begin NAME -->` and `end`.

python tools/readme.py            write them
python tools/readme.py --check    fail if one is out of date
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import click

from edgezoo_core import cards, hookspecs, plugins, recipe
from edgezoo_core.cli import main as edgezoo
from edgezoo_core.config import Config

ROOT = Path(__file__).resolve().parents[1]
FILES = (ROOT / "README.md", *sorted(ROOT.glob("plugins/**/README.md")))
CARDS = sorted(ROOT.glob("plugins/*/edgezoo_*/models.toml"))
#: What an author asks a config for; the other methods are the core's.
CONFIG_CALLS = (
    *("integer", "number", "optional", "flag", "choice", "rope", "sliding_windows"),
    *("only", "inert", "refused"),
)
#: What cannot say itself what it is.
AUTHORING = {
    "ACTIVATIONS": "Activations by the names of config.json.",
    "TensorNames": "litert-torch's: prefixes of tensor names by part; `{}` stands for the layer.",
    "defaults": "The core's own answers to the hooks, for a hook that changes a part of one.",
    "layers": "litert-torch's `model_config`: the descriptions of norms, feed-forward, model.",
}
STATES = {
    "ok": "",
    "incompatible": "Its `hook_api` is none that this core takes; the reason shows the upgrade.",
    "invalid-card": "`models.toml` is missing or wrong.",
    "conflict": "Two distributions claim a family or a model.",
    "import-failed": "Importing it raised; `--verbose` shows the traceback.",
    "contract-failed": "A hook is misspelt, or takes wrong arguments.",
    "disabled": "`EDGEZOO_PLUGINS` does not name it.",
}
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


def config() -> str:
    """Table of what an author asks a config for."""
    rows = []
    for name, function in vars(Config).items():
        if name in CONFIG_CALLS:
            names = list(inspect.signature(function).parameters)[1:]
            rows.append((f"`config.{name}({', '.join(names)})`", _summary(function)))
    return _table(("call", "what it does"), rows)


def authoring() -> str:
    """Table of what `edgezoo_core.authoring` offers, in its order."""
    from edgezoo_core import authoring

    rows = [
        (f"`{n}`", AUTHORING.get(n) or _summary(getattr(authoring, n))) for n in authoring.__all__
    ]
    return _table(("name", "what it is"), rows)


def states() -> str:
    """Table of a plugin's states."""
    rows = [(f"`{name}`", STATES[name]) for name in get_args(plugins.State)]
    return _table(("state", "what is the matter"), rows)


def checks() -> str:
    """Table of the contract's checks."""
    from edgezoo_core.compiler.schema import import_litert_torch

    import_litert_torch()  # without TensorFlow, which litert-torch asks for
    from edgezoo_core.testkit.checks import CHECKS

    rows = [(f"`{c.name}`", c.capability or "must", c.since, c.demand) for c in CHECKS]
    return _table(("check", "asked by", "since", "what must hold"), rows)


def examples() -> str:
    """Table of the example plugins with the lines that their author wrote."""
    rows = []
    for folder in sorted(ROOT.glob("examples/plugins/*/models.toml")):
        family = folder.parent.name
        files = [folder, folder.with_name(f"{family}.py")]
        lines = sum(bool(line.strip()) for f in files for line in f.read_text().splitlines())
        first = ast.get_docstring(ast.parse(files[1].read_text())) or ""
        what = first.partition("\n")[0].partition(": ")[2].removesuffix(".")
        rows.append((f"[{family}](../examples/plugins/{family}/{family}.py)", what, str(lines)))
    return _table(("family", "what it needs", "lines"), rows)


def _summary(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


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
    writers: tuple[Callable[[], str], ...] = (models, recipes, formats, commands, hooks)
    writers += (config, authoring, checks, states, examples)
    parts = {writer.__name__: writer for writer in writers}
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
