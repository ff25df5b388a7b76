"""The code that shapes a file: versions and digests of the core, a plugin, and the libraries."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import edgezoo_core
from edgezoo_core.plugins import Plugin, package_folder

#: Distributions whose versions shape a graph.
LIBRARIES = (
    "ai-edge-litert",
    "ai-edge-quantizer",
    "litert-converter",
    "litert-torch",
    "numpy",
    "torch",
    "transformers",
)


def identity(plugin: Plugin) -> dict[str, Any]:
    """Returns versions and digests of all code that shapes a file of the plugin's family."""
    return {
        "core": {
            "version": edgezoo_core.__version__,
            "source": _digest_of(Path(__file__).parents[1]),
        },
        "plugin": {
            "distribution": plugin.distribution,
            "version": plugin.version,
            "module": plugin.module,
            "source": _digest_of(package_folder(plugin.module.partition(".")[0])),
            "requirements": _requirements(plugin.distribution),
        },
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


@cache
def _digest_of(folder: Path) -> str:
    """Returns the sha256 over a package's sources and data, names included."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".toml")):
        content = path.read_bytes()
        total.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def _requirements(distribution: str) -> dict[str, str]:
    """Returns the versions of what a distribution asks for: its code may build on it."""
    found = {}
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires(distribution) or ():
            name = "".join(c if c.isalnum() or c in "-_." else " " for c in line).split()[0]
            found[name] = _version(name)
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
