"""`edgezoo plan` against what conversions then take: size, memory, time, for every family.

    python benchmarks/plan.py [--model tinyllama ...] [--recipe fp16 ...] [--folder DIR]
        [--checkpoint DIR ...] [--json FILE]

Each model of benchmarks/conversion.py is written as a synthetic checkpoint of its real shapes;
--checkpoint names folders to take besides, with real weights or a tokenizer. Every recipe is
planned and then converted with an empty cache, and once more with the full one. The tree of
processes is watched as in benchmarks/conversion.py. Ratios are predicted to measured: sizes and
memory must be within 10 %, time within 30 %, which takes a quiet machine; it ends with 1 if they
are not (--no-time leaves time out).

To fit edgezoo_core/planning/costs.py again, run it on a quiet machine, compare the stages that
--json writes, change the constants, and set `_REFERENCE` to the probes' seconds, printed last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conversion import EDGEZOO, MODELS, config_of, watch, write_checkpoint

from edgezoo_core.planning import costs

RECIPES = ("dynamic_int8", "dynamic_int4_block32", "fp16")
LIMITS = {"artifact": 0.1, "bundle": 0.1, "memory": 0.1, "time": 0.3}


def answer(text: str) -> dict[str, Any]:
    """Returns the JSON that a command printed last."""
    found: dict[str, Any] = json.loads(text[text.find("{\n") :])
    return found


def compare(source: Path, recipe: str, work: Path) -> Iterator[dict[str, Any]]:
    """Plans and converts with an empty cache, and again with the full one."""
    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    output = folder / "output"
    output.mkdir(parents=True)
    variables = {"EDGEZOO_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}
    environment = {**os.environ, **variables, "HF_HUB_OFFLINE": "1"}
    flags = [str(source), "--recipe", recipe, "--output", str(output), "--json"]
    for state in ("empty", "full"):
        command = [EDGEZOO, "plan", *flags]
        planned = subprocess.run(command, env=environment, capture_output=True, check=False)
        plan = answer(planned.stdout.decode())
        took = watch([EDGEZOO, "convert", *flags, "--force"], environment, folder, 22 << 30)
        if took["outcome"]:
            sys.exit(f"{source.name} {recipe}: {took['outcome']}")
        made = answer((folder / "stdout").read_text())
        manifest = made["manifest"]
        bundled = manifest.get("bundle") or {"size_bytes": 0}
        yield {
            "model": source.name,
            "recipe": recipe,
            "cache": state,
            "artifact": (plan["artifact_bytes"], manifest["artifact"]["size_bytes"]),
            "bundle": (plan["bundle_bytes"], bundled["size_bytes"]),
            "memory": (plan["peak_memory_bytes"], took["rss_bytes"]),
            "time": (plan["seconds"], took["wall_s"]),
            "planned_stages": plan["stage_seconds"],
            "measured_stages": made["seconds"],
            "planned_memory": plan["memory_bytes"],
            "measured_memory": made["peak_memory_bytes"],
            "pss_bytes": took["pss_bytes"],
            "cpu_s": took["cpu_s"],
        }
    shutil.rmtree(folder)


def row(found: Mapping[str, Any]) -> str:
    """Returns a line of the table: predicted, measured, ratio."""
    cells = [found["model"], found["recipe"], found["cache"]]
    for name, unit in (("artifact", 1e6), ("bundle", 1e6), ("memory", 1e9), ("time", 1)):
        predicted, measured = found[name]
        ratio = f"{predicted / measured:.3f}" if measured else "-"
        cells.append(f"{predicted / unit:.2f} of {measured / unit:.2f}: {ratio}")
    return f"| {' | '.join(cells)} |"


def misses(found: Mapping[str, Any], *, with_time: bool) -> list[str]:
    """Returns the figures that are further off than they may be."""
    names = [n for n in LIMITS if with_time or n != "time"]
    return [n for n in names if found[n][1] and abs(found[n][0] / found[n][1] - 1) > LIMITS[n]]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--checkpoint", action="append", type=Path, default=[])
    parser.add_argument("--folder", type=Path, help="keep the synthetic checkpoints there")
    parser.add_argument("--no-time", action="store_true", help="the machine is not quiet")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    models = asked.model or ([] if asked.checkpoint else ["tinyllama", "phi-2", "gemma-2b"])
    found: list[dict[str, Any]] = []
    # Else the first conversion waits for the disk that the libraries are on.
    libraries = "import litert_torch, ai_edge_quantizer, transformers, torch"
    subprocess.run([sys.executable, "-c", libraries], check=True, capture_output=True)
    print("| model | recipe | cache | artifact MB | bundle MB | memory GB | time s |")
    print("| --- " * 7 + "|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.folder or Path(temporary)).resolve()
        for source in [*(p.resolve() for p in asked.checkpoint), *(folder / m for m in models)]:
            if not source.exists():
                write_checkpoint(config_of(source.name), source)
            for recipe in asked.recipe or RECIPES:
                for one in compare(source, recipe, Path(temporary)):
                    found.append(one)
                    print(row(one), flush=True)
            if source.parent == folder and not asked.folder:
                shutil.rmtree(source)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2))
    print(f"\nprobes: {costs.probe_seconds(Path())}")
    missed = [
        f"{one['model']} {one['recipe']} {one['cache']}: {', '.join(names)}"
        for one in found
        if (names := misses(one, with_time=not asked.no_time))
    ]
    sys.exit("\n".join(["further off than they may be:", *missed]) if missed else 0)


if __name__ == "__main__":
    main()
