"""What `edgezoo list` adds to a bare start of Python, with 50 plugins installed.

    python benchmarks/startup.py [--runs N] [--plugins N]

Both commands run in turn; medians of the wall time of the whole process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CARD = """
schema = 1
hook_api = 1
family = "{family}"
architectures = ["{family}ForCausalLM"]

[[models]]
id = "{family}-1b"
title = "{family} 1B"
checkpoint = "{family}/{family}-1b"
license = "mit"
parameters = 1000000000
context_length = 2048
recipes = ["none", "dynamic_int8"]
default_recipe = "dynamic_int8"
"""


def install(folder: Path, count: int) -> None:
    """Lays out distributions as pip would, each with one plugin of one model."""
    for number in range(count):
        family = f"bench{number}"
        info = folder / f"edgezoo_{family}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: edgezoo-{family}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[edgezoo]\n{family} = edgezoo_{family}\n")
        package = folder / f"edgezoo_{family}"
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemExit('list must not import this')\n")
        (package / "models.toml").write_text(CARD.format(family=family))


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of one process."""
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Runs the benchmark and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--plugins", type=int, default=50)
    arguments = parser.parse_args()
    bare = [sys.executable, "-c", "pass"]
    listing = [str(Path(sys.executable).with_name("edgezoo")), "list"]
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder), arguments.plugins)
        environment = {**os.environ, "PYTHONPATH": folder}
        seconds(bare, environment), seconds(listing, environment)
        pairs = [
            (seconds(bare, environment), seconds(listing, environment))
            for _ in range(arguments.runs)
        ]
    medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
    added = statistics.median(b - a for a, b in pairs)
    print(f"bare python      {medians[0]:.3f} s")
    print(f"edgezoo list     {medians[1]:.3f} s with {arguments.plugins} more plugins")
    print(f"added            {added:.3f} s, {arguments.runs} runs of each in turn")


if __name__ == "__main__":
    main()
