"""Runs the fuzzer: `python -m fuzz.run TARGET|all --seconds N`.

Needs atheris (`pip install '.[fuzz]'`, Linux). The corpus grows in `fuzz/growing/`, which is not
kept; what reaches code that nothing else reaches is merged into `fuzz/corpus/TARGET/`, and an input
that breaks a target is left in `fuzz/findings/TARGET/`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fuzz import mutation, samples, targets

HERE = Path(__file__).parent
CORPUS, FINDINGS, GROWING = HERE / "corpus", HERE / "findings", HERE / "growing"
#: An input that takes longer is a finding; a busy machine takes a tenth of it.
TIMEOUT_S = 20
#: Memory of a process, libraries included, at which its input is a finding.
MEMORY_MB = 4096
#: Longest input by target; structure needs no more.
_LONGEST = {"sentencepiece": 8192, "litertlm": 16384, "pytorch": 4096, "tflite": 4096}
_STATUS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)")


def main() -> None:
    """Runs one target or all, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=["all", *targets.TARGETS])
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--inside", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside is not None:
        _fuzz(asked.target, asked.inside)
        return
    names = list(targets.TARGETS) if asked.target == "all" else [asked.target]
    for name in names:
        print(json.dumps(run(name, asked.seconds)), flush=True)


def run(name: str, seconds: int) -> dict[str, Any]:
    """Fuzzes a target, then merges its corpus.

    Returns:
        What is to be told: executions, coverage, CPU seconds, findings.
    """
    work, found, kept = GROWING / name, FINDINGS / name, CORPUS / name
    for folder in (work, found, kept):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in samples.seeds()[name]:
        (work / hashlib.sha1(seed).hexdigest()).write_bytes(seed)  # noqa: S324
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, executed, coverage, features = time.monotonic(), 0, 0, 0
    # After a finding libFuzzer ends: it begins again with what it has learned.
    while (left := seconds - (time.monotonic() - began)) > 1:
        told = _inside(
            name,
            f"-max_total_time={int(left)}",
            f"-artifact_prefix={found}/",
            "-print_final_stats=1",
            str(work),
            str(kept),
        )
        counts = [tuple(map(int, match)) for match in _STATUS.findall(told)]
        if not counts:
            raise SystemExit(f"{name} did not run:\n{told[-2000:]}")
        executed += counts[-1][0]
        coverage, features = max(coverage, counts[-1][1]), max(features, counts[-1][2])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    merge(name)
    return {
        "target": name,
        "executions": executed,
        "coverage": coverage,
        "features": features,
        "cpu_s": round(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime),
        "corpus": len(list(kept.iterdir())),
        "findings": len(list(found.iterdir())),
    }


def merge(name: str) -> None:
    """Makes the kept corpus the least that reaches what all inputs reach; named ones stay."""
    kept = CORPUS / name
    with tempfile.TemporaryDirectory() as scratch:
        _inside(name, "-merge=1", scratch, str(kept), str(GROWING / name))
        for old in kept.iterdir():
            if re.fullmatch(r"[0-9a-f]{40}", old.name):
                old.unlink()
        for new in Path(scratch).iterdir():
            shutil.copy(new, kept / new.name)


def _inside(name: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "fuzz.run", name, "--inside", *arguments]
    done = subprocess.run(
        command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.stdout.decode(errors="replace")


def _fuzz(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["edgezoo_core", "edgezoo_gemma", "edgezoo_phi2"]):
        # Imports what the target imports, instrumented, before the clock runs.
        for seed in samples.seeds()[name]:
            targets.TARGETS[name](seed)
    options = [
        f"-timeout={TIMEOUT_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-max_len={_LONGEST.get(name, 2048)}",
    ]
    words = mutation.WORDS.get(name, ())
    if words:
        dictionary = GROWING / f"{name}.dict"
        lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in words)
        dictionary.write_text("".join(f'"{line}"\n' for line in lines), encoding="ascii")
        options.append(f"-dict={dictionary}")
    mutator = mutation.MUTATORS.get(name)
    extra: dict[str, Any] = {}
    if mutator:
        extra["custom_mutator"] = lambda data, longest, seed: mutator(
            data, atheris.Mutate, longest, seed
        )
    # To merge, libFuzzer starts itself again as a program of this name.
    launcher = GROWING / f"{name}.sh"
    command = shlex.join([sys.executable, "-m", "fuzz.run", name, "--inside"])
    launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="ascii")
    launcher.chmod(0o755)
    atheris.Setup([str(launcher), *options, *arguments], targets.TARGETS[name], **extra)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
