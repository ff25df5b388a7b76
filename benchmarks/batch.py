"""Throughput of `edgezoo batch` against the number of workers.

    python benchmarks/batch.py ZOO.toml --workers 1 2 4
    python benchmarks/batch.py ZOO.toml --workers 1 2 --ray

Each row is a run from nothing: an empty store and an empty cache of graphs; downloads are not part
of it, so convert each model once before. With --ray, each number is that of nodes with one CPU in
a cluster on this machine, in processes of their own but on its disk. Run it alone: what shares the
machine shares its speed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

EDGEZOO = Path(sys.executable).with_name("edgezoo")
#: What a node of Ray says that it has; memory is bounded by the number of nodes here.
NODE_BYTES = 64 << 30


def main() -> None:
    """Runs the matrix once for each number, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("matrix", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="(%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="of each conversion (%(default)s)")
    parser.add_argument("--ray", action="store_true", help="on clusters, too")
    parser.add_argument("--keep", type=Path, help="folder for the stores, which are otherwise gone")
    options = parser.parse_args()
    print(f"{'engine':8}{'workers':>8}{'cells':>7}{'s':>9}{'cells/min':>11}{'ratio':>7}{'GB':>7}")
    sums = None
    for engine in ("local", "ray") if options.ray else ("local",):
        first = 0.0
        for workers in options.workers:
            report, seconds, peak = run(options, engine, workers)
            rate = 60 * len(report["cells"]) / seconds
            first = first or rate
            print(
                f"{engine:8}{workers:8}{len(report['cells']):7}{seconds:9.1f}{rate:11.2f}"
                f"{rate / first:7.2f}{peak / 1e9:7.2f}",
                flush=True,
            )
            found = [c["files"]["artifact"]["sha256"] for c in report["cells"]]
            if sums not in (None, found):
                raise SystemExit("the artifacts of two runs differ")
            sums = found


def run(options: argparse.Namespace, engine: str, workers: int) -> tuple[Any, float, int]:
    """Makes the matrix; returns the report, seconds, and the most memory of all processes."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.keep)))
        environment = {**os.environ, "EDGEZOO_CACHE": str(folder / "cache")}
        command = [EDGEZOO, "batch", options.matrix, "--output", folder / "store"]
        command += ["--json", "--jobs", str(options.jobs)]
        if engine == "ray":
            command += ["--address", start_cluster(stack, workers, options.jobs, environment)]
        else:
            command += ["--workers", str(workers)]
        before = tree_bytes()
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        watcher = Watcher(process)
        out, _ = process.communicate()
        seconds = time.perf_counter() - began
        watcher.join()
        if process.returncode:
            raise SystemExit(f"edgezoo batch ended with exit code {process.returncode}")
        return json.loads(out), seconds, watcher.peak - before


def start_cluster(stack: ExitStack, nodes: int, cpus: int, environment: dict[str, str]) -> str:
    """Starts a head that makes nothing, and nodes; returns the address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    stack.callback(cluster.shutdown)
    variables = {"EDGEZOO_CACHE": environment["EDGEZOO_CACHE"]}
    for _ in range(nodes):
        cluster.add_node(num_cpus=cpus, memory=NODE_BYTES, env_vars=variables)
    return str(cluster.address)


class Watcher(threading.Thread):
    """Looks at the memory of this process and all below it while another runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__()
        self.peak = 0
        self._process = process
        self.start()

    def run(self) -> None:
        """Takes the largest of many looks."""
        while self._process.poll() is None:
            self.peak = max(self.peak, tree_bytes())
            time.sleep(0.2)


def tree_bytes() -> int:
    """Returns the resident size of this process and all below it, shared pages counted once."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    below = {os.getpid()}
    while grown := {p for p, parent in parents.items() if parent in below} - below:
        below |= grown
    return sum(map(_proportional_bytes, sorted(below)))


def _proportional_bytes(process: int) -> int:
    try:
        lines: Sequence[str] = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
