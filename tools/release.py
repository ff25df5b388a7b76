"""Builds a release into dist: wheels, sdists, bills of materials, licences, checksums.

python tools/release.py [--output DIR]

Run it in the environment of the tested versions (`python dev.py env`): the bills of materials say
what is in it, of each distribution what it brings along. They are CycloneDX, made and validated by
cyclonedx-bom, which gets an environment of its own: it excludes the chardet that is tested here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import licences
from packaging.utils import canonicalize_name

ROOT = licences.ROOT
#: The tool and the version of the format that it writes.
CYCLONEDX = "cyclonedx-bom==7.5.0"
FORMAT = "1.6"
SUMS = "SHA256SUMS"
VALIDATE = """
import sys
from pathlib import Path
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(Path(sys.argv[1]).read_text())
sys.exit(f"{sys.argv[1]}: {fault}" if fault else 0)
"""


def main() -> None:
    """Builds everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    output: Path = parser.parse_args().output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        sys.exit(f"{output} is not empty: remove what is in it")
    for project in licences.PROJECTS:
        build(project, output)
    with tempfile.TemporaryDirectory() as folder:
        tool = make_tool(Path(folder))
        everything = bill_of_environment(tool, Path(folder))
        for project in licences.PROJECTS:
            write_bill(project, output, everything, tool)
    names = licences.closure(r for p in licences.PROJECTS for r in licences.required(p))
    found = licences.rows(names)
    if faults := [row.fault for row in found if row.fault]:
        sys.exit("not allowed by tools/licences.toml:\n" + "\n".join(faults))
    heading = "# Licences of what edgezoo brings along, in the tested versions\n\n"
    (output / "THIRD_PARTY_LICENCES.md").write_text(heading + licences.table(found) + "\n")
    write_sums(output)
    print("\n".join(p.name for p in sorted(output.iterdir())))


def build(project: Path, output: Path) -> None:
    """Builds sdist and wheel, the wheel from the sdist."""
    # hatchling is in the environment; its version is a tested one.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", output, project]
    run(*command)


def make_tool(folder: Path) -> Path:
    """Installs cyclonedx-bom into an environment of its own; returns its folder of programs."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "python", "-m", "pip", "install", "--quiet", CYCLONEDX)
    return programs


def bill_of_environment(tool: Path, folder: Path) -> dict[str, Any]:
    """Returns the bill of materials of this environment."""
    path = folder / "environment.json"
    run(
        *(tool / "python", "-m", "cyclonedx_py", "environment", sys.executable),
        *("--spec-version", FORMAT, "--output-reproducible", "--no-validate"),
        *("--output-file", path),
    )
    bill: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return bill


def write_bill(project: Path, output: Path, everything: Mapping[str, Any], tool: Path) -> None:
    """Writes and validates the bill of a distribution, of its extra `convert` if it has that."""
    table = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name = table["name"]
    (wheel,) = output.glob(f"{name.replace('-', '_')}-*.whl")
    version = wheel.name.split("-")[1]
    extras = [e for e in ("convert",) if e in table.get("optional-dependencies", {})]
    wanted = licences.closure(licences.required(project, extras))
    if project != ROOT:
        wanted.add("edgezoo-core")
    bill = narrowed(everything, name, wanted)
    root = bill["metadata"]["component"]
    root["version"] = version
    root["purl"] = f"pkg:pypi/{name}@{version}"
    root["hashes"] = [{"alg": "SHA-256", "content": sha256(wheel)}]
    path = output / f"{name}-{version}.cdx.json"
    path.write_text(json.dumps(bill, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    run(tool / "python", "-c", VALIDATE, path)


def narrowed(bill: Mapping[str, Any], name: str, wanted: set[str]) -> dict[str, Any]:
    """Returns a bill of an environment as the bill of one distribution in it.

    Args:
        bill: Of the whole environment.
        name: The distribution that it becomes the bill of.
        wanted: Names of the distributions that this one needs, in their normal form.

    Raises:
        SystemExit: One of them is not in the environment.
    """
    components: dict[str, Any] = {canonicalize_name(c["name"]): c for c in bill["components"]}
    missing = {name, *wanted} - components.keys()
    if missing:
        sys.exit(f"not installed here: {', '.join(sorted(missing))}")
    kept = [components[n] for n in sorted(wanted)]
    # Where a clone of the repo lies is nobody's business.
    apart = ("externalReferences", "properties")
    own = {n for n in components if n.startswith("edgezoo-")}
    kept = [
        {k: v for k, v in c.items() if k not in apart} if canonicalize_name(c["name"]) in own else c
        for c in kept
    ]
    root = {k: v for k, v in components[canonicalize_name(name)].items() if k not in apart}
    refs = {root["bom-ref"], *(c["bom-ref"] for c in kept)}
    dependencies = [
        {**d, **({"dependsOn": sorted(refs & set(d["dependsOn"]))} if "dependsOn" in d else {})}
        for d in bill["dependencies"]
        if d["ref"] in refs
    ]
    metadata = {**bill["metadata"], "component": root}
    return {**bill, "metadata": metadata, "components": kept, "dependencies": dependencies}


def write_sums(folder: Path) -> None:
    """Writes the sha256 of every file, as `sha256sum --check` reads it."""
    lines = [f"{sha256(p)}  {p.name}" for p in sorted(folder.iterdir()) if p.name != SUMS]
    (folder / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Returns the sha256 of a file in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(*command: object) -> None:
    """Runs a program; its output is shown if it fails."""
    # The constraints of the tested environment are not for the tool.
    kept = {k: v for k, v in os.environ.items() if k not in ("PIP_CONSTRAINT", "PYTHONPATH")}
    words = list(map(str, command))
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=kept)  # noqa: S603
    if done.returncode:
        sys.exit(f"failed: {' '.join(words)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
