"""Writes the files of a new plugin: the whole folder, or nothing."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from edgezoo_core import HOOK_API, __version__, partial
from edgezoo_core.cards import CAPABILITIES
from edgezoo_core.errors import ArtifactError, PluginError
from edgezoo_core.scaffold.card import CardDraft
from edgezoo_core.scaffold.code import quoted
from edgezoo_core.scaffold.draft import Draft
from edgezoo_core.scaffold.identity import Identity
from edgezoo_core.scaffold.source import PLACEHOLDER

TEMPLATES = Path(__file__).parent / "templates"


def write(names: Identity, draft: Draft, card: CardDraft, parent: Path) -> tuple[Path, ...]:
    """Writes the distribution's folder.

    Args:
        names: What the family is called.
        draft: Its architecture file.
        card: Its first card.
        parent: Where the folder is made.

    Returns:
        The files, the folder's own name included.

    Raises:
        PluginError: The folder is there already, or cannot be written.
    """
    folder = parent / names.distribution
    if os.path.lexists(folder):
        raise PluginError(
            f"{folder} is there already; nothing was written",
            remedy="choose another --output or another name, or move it away",
        )
    texts = _render(names, draft, card)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # Beside the destination, so that the finished folder only has to be renamed.
        with partial.folder(parent, names.family) as hidden:
            unfinished = hidden / names.distribution
            for name, text in texts.items():
                path = unfinished / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            unfinished.rename(folder)
    except (OSError, ArtifactError) as e:
        reason = e.message if isinstance(e, ArtifactError) else e.strerror or e
        raise PluginError(
            f"{folder} cannot be written: {reason}", remedy="choose another --output"
        ) from e
    return tuple(folder / name for name in texts)


def _render(names: Identity, draft: Draft, card: CardDraft) -> dict[str, str]:
    """Returns the text of every file by its path in the folder."""
    try:
        import jinja2
    except ImportError as e:
        raise PluginError(
            "drafting a plugin needs jinja2, which is not installed",
            remedy="run: pip install 'edgezoo-core[testkit]'",
        ) from e
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - no HTML; what comes from a source passes `quoted`
    )
    environment.filters["quoted"] = quoted
    values: dict[str, Any] = {
        "names": names,
        "draft": draft,
        "card": card,
        "architectures": draft.facts.source.architectures,
        "capabilities": CAPABILITIES,
        "core": core_range(__version__),
        "hook_api": HOOK_API,
        "placeholder": PLACEHOLDER,
        "torch": _torch(),
    }
    files = {
        "pyproject.toml": "pyproject.toml.j2",
        "README.md": "README.md.j2",
        f"{names.package}/__init__.py": "init.py.j2",
        f"{names.package}/{names.module}.py": "architecture.py.j2",
        f"{names.package}/models.toml": "models.toml.j2",
        f"tests/test_{names.module}.py": "test_family.py.j2",
        ".github/workflows/test.yml": "test.yml.j2",
    }
    texts = {path: environment.get_template(t).render(values) for path, t in files.items()}
    return texts | {f"{names.package}/py.typed": ""}


def core_range(version: str) -> str:
    """Returns the versions of the core that a plugin written today takes: `>=0.1,<0.2`."""
    major, minor = (int(n) for n in re.findall(r"\d+", version)[:2])
    end = f"0.{minor + 1}" if major == 0 else str(major + 1)
    return f">={major}.{minor},<{end}"


def _torch() -> str:
    """Returns the core's own requirement of torch."""
    requirements = metadata.requires("edgezoo-core") or []
    found = (r.partition(";")[0].strip() for r in requirements)
    return next((r for r in found if re.match(r"torch\b(?!-)", r)), "torch")
