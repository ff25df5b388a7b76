"""Prefill and decode speed of converted files beside each other, in turn.

    python benchmarks/decode.py old=before.tflite new=after.tflite
    python benchmarks/decode.py lm=model.litertlm lm-512=model.litertlm@512 cpp=model-q8_0.gguf \
        --llama-bench llama.cpp/build/bin/llama-bench --depth 128

A .tflite runs in edgezoo's own Session, a .litertlm in `litert-lm benchmark`, a .gguf in
llama.cpp's `llama-bench`. `@N` behind a bundle is LiteRT-LM's --max-num-tokens; without it each
bundle gets its whole KV cache, as `litert-lm run` gives it. Decoding begins behind `depth` tokens.

Each round measures every model once, so that a slow minute of the machine meets all of them. What
other processes disturbed is measured again where /proc/stat tells (threads that wait for each other
lose far more than the time taken from them). Medians over the rounds; ratios are medians of the
rounds' own ratios to the first model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Speeds = tuple[float, float]
"""Tokens per second: prefill, decode."""


@dataclass(frozen=True, slots=True)
class Model:
    """A file to be measured, and the context it is given."""

    name: str
    path: Path
    max_tokens: int | None


def main() -> None:
    """Measures, and prints the table."""
    options = arguments()
    rows = []
    for depth in options.depth:
        measured: dict[str, list[Speeds]] = {model.name: [] for model in options.models}
        runs = {model.name: runner(model, depth, options) for model in options.models}
        for number in range(options.rounds):
            for name, run in runs.items():
                measured[name].append(undisturbed(run, options))
                print(
                    f"round {number + 1} depth {depth} {name}: {speeds(measured[name][-1])}",
                    file=sys.stderr,
                )
        first = measured[options.models[0].name]
        rows += [(name, depth, *summary(found, first)) for name, found in measured.items()]
    print("| model | depth | prefill | ratio | decode | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, depth, prefill, prefill_ratio, decode, decode_ratio in rows:
        print(
            f"| {name} | {depth} | {prefill:.0f} | {prefill_ratio:.2f}"
            f" | {decode:.1f} | {decode_ratio:.2f} |"
        )


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=model, metavar="NAME=FILE[@N]")
    parser.add_argument("--depth", type=int, action="append", help="default: 128")
    parser.add_argument("--tokens", type=int, default=64, help="to decode (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--retries", type=int, default=5, help="if disturbed (%(default)s)")
    parser.add_argument("--litert-lm", default="litert-lm", help="(%(default)s)")
    parser.add_argument("--llama-bench", default="llama-bench", help="(%(default)s)")
    options = parser.parse_args()
    options.depth = options.depth or [128]
    return options


def model(text: str) -> Model:
    """Reads NAME=FILE[@N]."""
    name, _, rest = text.partition("=")
    path, _, limit = rest.partition("@")
    if not rest or Path(path).suffix not in (".tflite", ".litertlm", ".gguf"):
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=FILE.tflite, .litertlm or .gguf")
    return Model(name, Path(path), int(limit) if limit else None)


def runner(found: Model, depth: int, options: argparse.Namespace) -> Callable[[], Speeds]:
    """Returns what measures a model once; a Session stays loaded between rounds."""
    if found.path.suffix == ".tflite":
        return session_runner(found, depth, options)
    if found.path.suffix == ".litertlm":
        return lambda: litert_lm(found, depth, options)
    return lambda: llama_cpp(found, depth, options)


def session_runner(found: Model, depth: int, options: argparse.Namespace) -> Callable[[], Speeds]:
    """Returns what measures a .tflite, loaded once."""
    from edgezoo_core.runtime import Session

    session = Session(found.path, options.threads)
    prompt = [i % 1000 + 1 for i in range(depth)]

    def run() -> Speeds:
        session.reset()
        prefill = seconds(lambda: session.feed(prompt))
        session.feed(prompt[:1])  # the first may grow or touch what later ones need
        decode = seconds(lambda: [session.feed(prompt[:1]) for _ in range(options.tokens)])
        return depth / prefill, options.tokens / decode

    run()
    return run


def undisturbed(run: Callable[[], Speeds], options: argparse.Namespace) -> Speeds:
    """Measures until others took under a fiftieth of the CPUs, or returns the least disturbed."""
    attempts = []
    for _ in range(options.retries + 1):
        start = time.perf_counter(), busy(), own()
        found = run()
        elapsed, all_, mine = (time.perf_counter(), busy(), own())
        others = (all_ - start[1]) - (mine - start[2])
        attempts.append((others / (elapsed - start[0]) / (os.cpu_count() or 1), found))
        if attempts[-1][0] < 0.02:
            break
    share, found = min(attempts)
    if share >= 0.02:
        print(f"  others took {share:.0%} of the CPUs", file=sys.stderr)
    return found


def busy() -> float:
    """Returns the seconds that all CPUs have worked, 0 where the system does not tell."""
    try:
        user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    except OSError:
        return 0
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def own() -> float:
    """Returns the seconds that this process and its ended children have worked."""
    return sum(os.times()[:4])


def seconds(action: Callable[[], object]) -> float:
    """Returns how long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def litert_lm(found: Model, depth: int, options: argparse.Namespace) -> Speeds:
    """Measures a bundle."""
    command = [options.litert_lm, "benchmark", str(found.path), "-p", str(depth)]
    command += ["-d", str(options.tokens), "--cpu-thread-count", str(options.threads)]
    command += ["--max-num-tokens", str(found.max_tokens)] if found.max_tokens else []
    printed = output(command)
    kinds = "Prefill", "Decode"
    found_speeds = [re.search(rf"{kind} speed:\s*([\d.]+)", printed) for kind in kinds]
    # Its exit code is 0 even on failure.
    if not all(found_speeds) or any(float(match[1]) == 0 for match in found_speeds if match):
        sys.exit(f"{' '.join(command)} failed:\n{printed}")
    prefill, decode = (float(match[1]) for match in found_speeds if match)
    return prefill, decode


def llama_cpp(found: Model, depth: int, options: argparse.Namespace) -> Speeds:
    """Measures a GGUF file."""
    command = [options.llama_bench, "-m", str(found.path), "-t", str(options.threads)]
    command += ["-r", "1", "-o", "json"]
    prefill = json.loads(output([*command, "-p", str(depth), "-n", "0"]))
    decode = json.loads(output([*command, "-p", "0", "-n", str(options.tokens), "-d", str(depth)]))
    return prefill[0]["avg_ts"], decode[0]["avg_ts"]


def output(command: list[str]) -> str:
    """Returns what a program prints; its failure ends this one."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def speeds(found: Speeds) -> str:
    """Writes out what was measured."""
    return f"prefill {found[0]:.0f}, decode {found[1]:.1f} tokens/s"


def summary(found: list[Speeds], first: list[Speeds]) -> tuple[float, float, float, float]:
    """Returns medians and ratios: prefill, its ratio, decode, its ratio."""
    result = []
    for kind in (0, 1):
        result.append(statistics.median(speed[kind] for speed in found))
        pairs = zip(found, first, strict=True)
        result.append(statistics.median(a[kind] / b[kind] for a, b in pairs))
    prefill, prefill_ratio, decode, decode_ratio = result
    return prefill, prefill_ratio, decode, decode_ratio


if __name__ == "__main__":
    main()
