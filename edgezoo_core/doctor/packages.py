"""Python, the distributions and their versions, by metadata alone: nothing heavy is imported."""

from __future__ import annotations

import platform
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from edgezoo_core.doctor.finding import Finding
from edgezoo_core.errors import plain

DISTRIBUTION = "edgezoo-core"
#: What users install on purpose; extra -> what for.
EXTRAS = {
    "convert": "converting, verifying and bundling",
    "run": "LiteRT-LM for `run` and `bench`",
    "tensorflow": "`verify --runtime tensorflow`",
    "evaluate": "`evaluate`",
    "plot": "`bench --plot`",
    "ray": "`batch --address`",
}
#: Modules that a file or folder of the same name where edgezoo runs would hide from workers.
_SHADOWED = ("torch", "transformers", "litert_torch", "tensorflow", "numpy", "edgezoo_core")


def examine() -> Iterator[Finding]:
    """Looks at the interpreter, its platform, and what is installed."""
    yield from _interpreter()
    installed = _installed()
    yield from _extras(installed)
    yield from _known(installed)
    yield from _doubles()
    yield from _shadows(Path.cwd())


def _interpreter() -> Iterator[Finding]:
    wanted = SpecifierSet(metadata.metadata(DISTRIBUTION)["Requires-Python"])
    python = platform.python_version()
    if wanted.contains(python, prereleases=True):
        yield Finding("ok", "python", python)
    else:
        remedy = "make an environment with Python 3.11: python3.11 -m venv .venv"
        yield Finding("error", "python", f"{python}, edgezoo needs {wanted}", remedy)
    where = f"{platform.system()} on {platform.machine()}"
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        yield Finding("ok", "platform", where)
    else:
        remedy = "what is tested is Linux on x86-64; in doubt convert there, the files are the same"
        yield Finding("warning", "platform", f"{where}, where nobody has run the tests yet", remedy)
    if sys.maxsize < 1 << 32:
        yield Finding("error", "python", "32 bits", "install a Python of 64 bits")


def _installed() -> dict[str, str]:
    """Returns distribution -> version; of several copies the one that is imported."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        about = distribution.metadata
        if about["Name"]:  # what an interrupted uninstall left behind has none
            found.setdefault(canonicalize_name(about["Name"]), str(about["Version"]))
    return found


def _extras(installed: dict[str, str]) -> Iterator[Finding]:
    yield Finding("ok", DISTRIBUTION, plain(installed.get(DISTRIBUTION, "not installed")))
    known = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    for extra in ("", *(e for e in EXTRAS if e in known)):
        wanted = list(_requirements(extra))
        missing = [r for r in wanted if canonicalize_name(r.name) not in installed]
        wrong = [
            r
            for r in wanted
            if r not in missing
            and not r.specifier.contains(installed[canonicalize_name(r.name)], prereleases=True)
        ]
        command = f"run: pip install '{DISTRIBUTION}[{extra}]'" if extra else "reinstall it"
        subject = f"[{extra}]" if extra else "dependencies"
        for requirement in wrong:
            version = plain(installed[canonicalize_name(requirement.name)])
            found = f"{requirement.name} {version}, edgezoo needs {requirement.specifier}"
            yield Finding("error", subject, found, command)
        if missing:
            names = ", ".join(r.name for r in missing)
            for_what = f", for {EXTRAS[extra]}" if extra else ""
            level = "note" if extra else "error"
            yield Finding(level, subject, f"not installed: {names}{for_what}", command)  # type: ignore[arg-type]
        elif not wrong:
            versions = (f"{r.name} {installed[canonicalize_name(r.name)]}" for r in wanted)
            yield Finding("ok", subject, plain(", ".join(versions)))


def _requirements(extra: str) -> Iterator[Requirement]:
    """Yields what an extra needs beside what comes with `convert`; `` for what is always needed."""
    found = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]

    def needed(extra: str) -> dict[str, Requirement]:
        # Extras of ours that an extra names are written out in the metadata of a wheel.
        return {
            canonicalize_name(r.name): r
            for r in found
            if not r.marker or r.marker.evaluate({"extra": extra})
        }

    below: dict[str, Requirement] = {}
    if extra:
        below = needed("") if extra == "convert" else needed("convert")
    for name, requirement in needed(extra).items():
        if name not in below and name != DISTRIBUTION:
            yield requirement


def _known(installed: dict[str, str]) -> Iterator[Finding]:
    text = Path(__file__).with_name("known.toml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = tomllib.loads(text)["known"]
    for entry in entries:
        name = entry["distribution"]
        version = installed.get(canonicalize_name(name))
        meant = SpecifierSet(entry.get("versions", ""))
        if version is not None and meant.contains(version, prereleases=True):
            found = f"{name} {plain(version)} {entry['found']}"
            yield Finding(entry["level"], "known fault", found, entry["remedy"])
    torch = installed.get("torch", "")
    if "+cu" in torch or "+rocm" in torch:
        found = f"torch {plain(torch)} is built for GPUs, which edgezoo does not use"
        remedy = "to save disk, install the CPU build: https://pytorch.org/get-started/locally/"
        yield Finding("note", "known fault", found, remedy)


def _doubles() -> Iterator[Finding]:
    """Two copies of a distribution: which one is imported depends on the path."""
    places = {
        (canonicalize_name(d.metadata["Name"]), str(d.version))
        for d in metadata.distributions()
        if d.metadata["Name"]
    }
    counts = Counter(name for name, _ in places)
    for name in sorted(name for name, count in counts.items() if count > 1):
        versions = ", ".join(sorted(version for n, version in places if n == name))
        found = plain(f"{name} is installed in several versions: {versions}")
        yield Finding("warning", "packages", found, f"run: pip install --force-reinstall {name}")


def _shadows(folder: Path) -> Iterator[Finding]:
    for name in _SHADOWED:
        for path in (folder / f"{name}.py", folder / name / "__init__.py"):
            is_own = name == "edgezoo_core" and (folder / "registry.toml").is_file()
            if path.is_file() and not is_own:
                found = f"{plain(str(path))} hides the library {name} from what runs here"
                yield Finding("warning", "this folder", found, "rename it, or work elsewhere")
