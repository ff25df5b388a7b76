"""Fake distributions: a folder of dist-info and package, put on the path without pip."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path

from edgezoo_core import plugins
from edgezoo_core.plugins import Plugin

HOOKS = """
from edgezoo_core import hookimpl

@hookimpl
def author(model, config):
    raise AssertionError("nobody asked for this hook")
"""


def card_text(
    family: str = "fake",
    *,
    models: tuple[str, ...] = ("fake-1b",),
    architectures: tuple[str, ...] = ("FakeForCausalLM",),
    hook_api: int = 1,
) -> str:
    """Returns a models.toml."""
    head = f"schema = 1\nhook_api = {hook_api}\nfamily = {family!r}\n"
    names = ", ".join(repr(a) for a in architectures)
    tables = [
        f"[[models]]\nid = {m!r}\ntitle = {m!r}\ncheckpoint = 'fake-org/{m}'\nlicense = 'mit'\n"
        "parameters = 1000\ncontext_length = 2048\nrecipes = ['none', 'dynamic_int8']\n"
        "default_recipe = 'dynamic_int8'\n"
        for m in models
    ]
    return "\n".join([head, f"architectures = [{names}]\n", *tables])


@dataclass
class FakeSite:
    """A folder on the path that distributions can be added to."""

    folder: Path
    packages: set[str] = field(default_factory=set)

    def add(
        self,
        family: str = "fake",
        *,
        distribution: str | None = None,
        version: str = "1.0",
        module: str | None = None,
        entry: str | None = None,
        body: str = HOOKS,
        parent_body: str = "",
        card: str | None = "default",
    ) -> Path:
        """Adds a distribution with one plugin; returns the folder of the plugin's package."""
        distribution = distribution or f"edgezoo-{family}"
        module = module or distribution.replace("-", "_")
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text(f"[edgezoo]\n{family} = {entry or module}\n")
        package = self.folder.joinpath(*module.split("."))
        package.mkdir(parents=True, exist_ok=True)
        for parent in package.relative_to(self.folder).parents[:-1]:
            (self.folder / parent / "__init__.py").write_text(parent_body)
        (package / "__init__.py").write_text(body)
        if card is not None:
            text = card_text(family, models=(f"{family}-1b",)) if card == "default" else card
            (package / "models.toml").write_text(text)
        self.packages.add(module.partition(".")[0])
        importlib.invalidate_caches()
        return package

    def plugin(self, family: str = "fake") -> Plugin:
        """Returns what discovery says about the only plugin of a family."""
        (found,) = (p for p in plugins.discover() if p.family == family)
        return found
