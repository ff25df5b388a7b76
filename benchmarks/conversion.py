"""Converters side by side on synthetic checkpoints of real shapes: time and memory. Linux only.

    python benchmarks/conversion.py --model tinyllama [--model phi-2 ...] [--rounds N]
        [--folder DIR] [--limit-gib 22] [--json FILE] [CONVERTER[:6] ...]

All CONVERTERS and `edgezoo-2:6` run unless some are named; `--model tiny` tries it out. `edgezoo-1`
and `-2` start with an empty cache and take one job or two, `-warm` repeats a conversion, `-recipe`
takes another recipe of a model whose trace is cached, `-litert` takes `--engine litert`.
`litert-torch` is what its own examples do, `-light` the same with lightweight_conversion. `floor`
copies checkpoint and artifact and hashes both, `floor-fsync` waits for the disk as well. With `:6`
a converter makes six prefill signatures, otherwise one. All have the same cache layout and mask.

Converters take turns, every other round backwards, each with the checkpoint read beforehand. The
tree of processes is watched from outside: RSS every 10 ms; PSS, which counts a shared page once,
every 50 ms (less often where reading takes long) and whenever RSS has grown by 2 %. Run it alone:
other processes with the same libraries take their share of PSS, and an edgezoo that is edited
meanwhile does not find its cache. A run whose PSS passes the limit, or that leaves the machine
without memory, is killed and not repeated. The table has medians; ratios are to litert-torch with
the same signatures. --folder keeps checkpoints.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
GEMMA = {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6}
PHI = {"model_type": "phi", "hidden_act": "gelu_new", "partial_rotary_factor": 0.4}
SHAPE = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size"),
)
#: Name -> the family's fields, and the values of SHAPE.
MODELS: dict[str, tuple[Mapping[str, Any], tuple[int, ...]]] = {
    "tiny": (LLAMA, (128, 256, 2, 4, 2, 32, 512)),
    "tinyllama": (LLAMA, (2048, 5632, 22, 32, 4, 64, 32000)),
    "phi-2": (PHI, (2560, 10240, 32, 32, 32, 80, 51200)),
    "gemma-2b": (GEMMA, (2048, 16384, 18, 8, 1, 256, 256000)),
    "gemma-7b": (GEMMA, (3072, 24576, 28, 16, 16, 256, 256000)),
}
#: Converter -> flags of `edgezoo convert`, and the disk it may fill in bytes per parameter.
CONVERTERS: dict[str, tuple[str, float]] = {
    "edgezoo-1": ("--recipe dynamic_int8 --jobs 1", 2.5),
    "edgezoo-2": ("--recipe dynamic_int8 --jobs 2", 2.5),
    "edgezoo-warm": ("--recipe dynamic_int8 --jobs 2", 3.5),
    "edgezoo-recipe": ("--recipe weight_only_int8 --jobs 2", 3.5),
    "edgezoo-litert": ("--recipe dynamic_int8 --engine litert", 5.5),
    "litert-torch": ("", 5.5),
    "litert-torch-light": ("", 5.5),
    "floor": ("", 4.5),
    "floor-fsync": ("", 4.5),
}
PREFILL = {"": [128], "6": [8, 16, 32, 64, 128, 256]}
KV_CACHE = 1280
SHARD_BYTES = 5 * 10**9
#: A prime: tensors of equal shape begin at different values, so that no converter merges them.
RANDOM_VALUES = 8_388_617
#: The machine keeps this much; others run on it.
SPARE_BYTES = 400 * 2**20
EDGEZOO = str(Path(sys.executable).with_name("edgezoo"))
BEGAN = time.perf_counter()


def config_of(model: str) -> dict[str, Any]:
    """Returns config.json."""
    family, values = MODELS[model]
    kind = family["model_type"]
    return {
        **family,
        **dict(zip(SHAPE, values, strict=True)),
        "architectures": [f"{kind.title()}ForCausalLM"],
        "max_position_embeddings": 8192 if kind == "gemma" else 2048,
        "tie_word_embeddings": kind == "gemma",
        "torch_dtype": "bfloat16",
    }


def tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor by transformers' name."""
    hidden, inner, layers, heads, groups, head_dim, vocab = (config[field] for field in SHAPE)
    is_phi = config["model_type"] == "phi"
    wide, narrow, flat = (inner, hidden), (hidden, inner), (hidden,)
    keys = (groups * head_dim, hidden)
    block: dict[str, tuple[int, ...]] = {"input_layernorm": flat, "self_attn.k_proj": keys}
    block |= {"self_attn.q_proj": (heads * head_dim, hidden), "self_attn.v_proj": keys}
    block["self_attn.dense" if is_phi else "self_attn.o_proj"] = (hidden, heads * head_dim)
    if is_phi:
        block |= {"mlp.fc1": wide, "mlp.fc2": narrow}
    else:
        block |= {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": narrow}
        block["post_attention_layernorm"] = flat
    parts = {f"model.layers.{i}.{n}": shape for i in range(layers) for n, shape in block.items()}
    parts["model.final_layernorm" if is_phi else "model.norm"] = flat
    if not config["tie_word_embeddings"]:
        parts["lm_head"] = (vocab, hidden)
    biases = {f"{name}.bias": shape[:1] for name, shape in parts.items() if is_phi}
    weights = {f"{name}.weight": shape for name, shape in parts.items()}
    return {"model.embed_tokens.weight": (vocab, hidden), **weights, **biases}


def write_random(path: Path, header: bytes, start: int, end: int) -> None:
    """Writes a stretch of an endless repetition of bfloat16 values of N(0, 0.02)."""
    import numpy as np

    values = np.random.default_rng(0).normal(0, 0.02, RANDOM_VALUES).astype(np.float32)
    block = memoryview((values.view(np.uint32) >> 16).astype("<u2").tobytes())
    with path.open("wb") as file:
        file.write(header)
        while start < end:
            start += file.write(block[start % len(block) :][: end - start])
        os.fsync(file.fileno())


def write_checkpoint(config: Mapping[str, Any], folder: Path) -> None:
    """Writes safetensors in shards of 5 GB and config.json; the folder is there once complete."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shards: list[dict[str, Any]] = [{}]
    ends = [0, 0]  # of the shards, in bytes of all of them
    for name, shape in tensors(config).items():
        size = 2 * math.prod(shape)
        if ends[-1] - ends[-2] + size > SHARD_BYTES and shards[-1]:
            shards.append({})
            ends.append(ends[-1])
        at = ends[-1] - ends[-2]
        shards[-1][name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        ends[-1] += size
    places: dict[str, str] = {}
    for i, (shard, (start, end)) in enumerate(zip(shards, itertools.pairwise(ends), strict=True)):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        places |= dict.fromkeys(shard, file)
        text = json.dumps(shard).encode()
        text += b" " * (-len(text) % 8)
        write_random(partial / file, len(text).to_bytes(8, "little") + text, start, end)
    index = {"metadata": {"total_size": ends[-1]}, "weight_map": places}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index))
    (partial / "config.json").write_text(json.dumps(config, indent=2))
    partial.rename(folder)


def convert_with_litert_torch(name: str, source: Path, output: Path, prefill: list[int]) -> None:
    """Child: converts as litert-torch's examples do, with the shapes of config.json."""
    from litert_torch.generative.examples.gemma import gemma1
    from litert_torch.generative.examples.phi import phi2
    from litert_torch.generative.examples.tiny_llama import tiny_llama
    from litert_torch.generative.utilities import converter, model_builder

    fields = json.loads((source / "config.json").read_text())
    config, names = {
        "llama": (tiny_llama.get_model_config, tiny_llama.TENSOR_NAMES),
        "gemma": (gemma1.get_model_config_2b, gemma1.TENSOR_NAMES_SEP_QKV),
        "phi": (phi2.get_model_config, phi2.TENSOR_NAMES),
    }[fields["model_type"]]
    config = config()
    config.vocab_size, config.embedding_dim = fields["vocab_size"], fields["hidden_size"]
    config.num_layers = fields["num_hidden_layers"]
    if config.embedding_scale is not None:
        config.embedding_scale = config.embedding_dim**0.5
    block = config.block_config(0)
    block.ff_config.intermediate_size = fields["intermediate_size"]
    block.attn_config.num_heads = fields["num_attention_heads"]
    block.attn_config.num_query_groups = fields["num_key_value_heads"]
    block.attn_config.head_dim = fields["head_dim"]
    if name.endswith("-light"):
        # convert_to_tflite has no such option.
        plain = converter.converter_utils.Converter.convert
        converter.converter_utils.Converter.convert = lambda self, **options: plain(
            self, **options, lightweight_conversion=True
        )
    took = {"imports": time.perf_counter() - BEGAN}
    module = model_builder.build_decoder_only_model(
        str(source), config, names, mask_cache_size=KV_CACHE
    )
    took["building"] = time.perf_counter() - BEGAN - sum(took.values())
    converter.convert_to_tflite(
        module, str(output), "model", prefill, KV_CACHE, export_config=converter.ExportConfig()
    )
    took["converting"] = time.perf_counter() - BEGAN - sum(took.values())
    print(json.dumps({"seconds": took}))


def copy_and_hash(name: str, source: Path, output: Path, prefill: list[int]) -> None:
    """Child: what the disk and sha256 cost, whatever the converter."""
    subprocess.run(["cp", "-r", source, output.parents[1] / "artifact.tflite", output], check=True)
    took = {"copying": time.perf_counter() - BEGAN}
    files = [path for path in output.rglob("*") if path.is_file()]
    if name.endswith("-fsync"):
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        took["fsync"] = time.perf_counter() - BEGAN - sum(took.values())
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    took["hashing"] = time.perf_counter() - BEGAN - sum(took.values())
    print(json.dumps({"seconds": took}))


def session(leader: int) -> list[int]:
    """Returns the processes that a session leader started, and those that they started."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):  # noqa: PTH208
        with contextlib.suppress(ProcessLookupError):
            found += [pid] if os.getsid(pid) == leader else []
    return found


def memory(pids: Sequence[int | str], file: str, *fields: str) -> list[int]:
    """Sums fields of /proc/PID/FILE, where they are in kB, over processes; in bytes."""
    sums = [0] * len(fields)
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/{file}").read_text()
            found = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
            sums = [n + 1024 * int(found.get(f, 0)) for n, f in zip(sums, fields, strict=True)]
    return sums


def watch(
    command: list[str], environment: dict[str, str], logs: Path, limit: int
) -> dict[str, Any]:
    """Runs a command in a session of its own; returns what the whole session took."""
    took: dict[str, Any] = dict.fromkeys(("pss_bytes", "anonymous_bytes", "rss_bytes"), 0)
    took |= {"outcome": "", "processes": 0, "longest_gap_s": 0.0}
    next_pss = seen_rss = 0.0
    with (logs / "stdout").open("w") as out, (logs / "stderr").open("w") as err:
        began = before = time.perf_counter()
        leader = subprocess.Popen(
            command, env=environment, stdout=out, stderr=err, start_new_session=True
        ).pid
    # Should memory run out at once, it is this one that the kernel ends.
    Path(f"/proc/{leader}/oom_score_adj").write_text("1000")
    try:
        while not (ended := os.wait4(leader, os.WNOHANG))[0]:
            now = time.perf_counter()
            pids = session(leader)
            (rss,) = memory(pids, "status", "VmRSS")
            sample = {"rss_bytes": rss, "processes": len(pids), "longest_gap_s": now - before}
            before = now
            if now > next_pss or rss > 1.02 * seen_rss:
                pss, anonymous = memory(pids, "smaps_rollup", "Pss", "Pss_Anon")
                sample |= {"pss_bytes": pss, "anonymous_bytes": anonymous}
                next_pss = now + max(0.05, 10 * (time.perf_counter() - now))
                seen_rss = max(rss, seen_rss)
                if pss > limit:
                    took["outcome"] = f"killed at {limit / 2**30:g} GiB after {now - began:.0f} s"
                elif memory(["."], "meminfo", "MemAvailable")[0] < SPARE_BYTES:
                    took["outcome"] = f"killed after {now - began:.0f} s: no memory is left"
            took |= {name: max(value, took[name]) for name, value in sample.items()}
            if took["outcome"]:
                break
            time.sleep(0.01)
        took["wall_s"] = time.perf_counter() - began
    finally:
        for pid in session(leader):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if not ended[0]:
        ended = os.wait4(leader, 0)
    if ended[1] and not took["outcome"]:
        last = (logs / "stderr").read_text().strip().splitlines()[-2:]
        took["outcome"] = f"failed ({os.waitstatus_to_exitcode(ended[1])}): {' '.join(last)}"
    took["cpu_s"] = ended[2].ru_utime + ended[2].ru_stime
    took["largest_process_bytes"] = 1024 * ended[2].ru_maxrss  # the kernel's own peak
    took["file_bytes"] = 0
    return took


def command_of(name: str, source: Path, output: Path) -> list[str]:
    """Returns the command line of a converter."""
    converter, _, variant = name.partition(":")
    lengths = [str(n) for n in PREFILL[variant]]
    if not converter.startswith("edgezoo"):
        return [sys.executable, __file__, "--child", converter, str(source), str(output), *lengths]
    # The layout and mask that litert-torch's examples have.
    flags = ["--kv-layout", "default", "--mask-built-in", "--kv-cache", str(KV_CACHE)]
    flags += [*CONVERTERS[converter][0].split(), "--force", "--json", "--output", str(output)]
    return [EDGEZOO, "convert", str(source), *flags, *(f"--prefill={n}" for n in lengths)]


def run(name: str, source: Path, work: Path, limit: int) -> dict[str, Any]:
    """Runs a converter once, with the checkpoint read beforehand; deletes what it made."""
    folder, output, cache = (work / n for n in ("run", "run/output", "run/cache"))
    output.mkdir(parents=True)
    variables = {"EDGEZOO_CACHE": str(cache), "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **variables, "LITERT_TORCH_SHOW_PROGRESS": "0"}
    try:
        converter, _, variant = name.partition(":")
        if converter in ("edgezoo-warm", "edgezoo-recipe"):
            if not (filled := work / f"cache{variant}").exists():
                first = command_of(f"edgezoo-2:{variant}", source, output)
                took = watch(first, {**environment, "EDGEZOO_CACHE": str(filled)}, folder, limit)
                if took["outcome"]:
                    shutil.rmtree(filled, ignore_errors=True)
                    return took
                shutil.rmtree(output)
                output.mkdir()
            shutil.copytree(filled, cache)
        for path in source.iterdir():
            with path.open("rb") as file:
                while file.read(2**24):
                    pass
        took = watch(command_of(name, source, output), environment, folder, limit)
        text = (folder / "stdout").read_text()
        if not took["outcome"]:
            took["stages_s"] = json.loads(text[text.rfind("\n{") + 1 :])["seconds"]
        took["file_bytes"] = sum(path.stat().st_size for path in output.rglob("*.tflite"))
        return took
    finally:
        shutil.rmtree(folder)


def measure(model: str, names: list[str], rounds: int, folder: Path, limit: int) -> dict[str, Any]:
    """Measures converters on one model in turn; returns all runs by converter."""
    config = config_of(model)
    count = sum(math.prod(shape) for shape in tensors(config).values())
    needed = count * (max(CONVERTERS[name.partition(":")[0]][1] for name in names) + 1)
    source = folder / model
    free = shutil.disk_usage(folder).free
    if free < needed + 2 * count * (not source.exists()):
        sys.exit(f"{model} may fill {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} are free")
    if not source.exists():
        write_checkpoint(config, source)
    runs: dict[str, Any] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=folder) as text:
        work = Path(text)
        write_random(work / "artifact.tflite", b"", 0, count)
        for turn in range(rounds):
            for name in names[:: -1 if turn % 2 else 1]:
                if any(took["outcome"] for took in runs[name]):
                    continue
                took = run(name, source, work, limit)
                size = took["file_bytes"]
                if not took["outcome"] and not 0.95 * count < size < 1.3 * count + 10**8:
                    took["outcome"] = f"failed: {size} bytes for {count} parameters"
                runs[name].append(took)
                said = took["outcome"] or f"{took['wall_s']:.1f} s"
                print(f"{model} {name}, round {turn + 1}: {said}", file=sys.stderr)
    return runs


def print_table(runs_by_model: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> None:
    """Prints medians; of a converter that did not come through, how it ended."""
    print("| model | converter | wall s | of plain | peak PSS GB | of plain", end=" | ")
    print("peak RSS GB | CPU s | file GB | stages, s |\n" + "| --- " * 10 + "|")
    for model, runs in runs_by_model.items():
        medians: dict[str, dict[str, float]] = {}
        for name, rows in runs.items():
            if not any(took["outcome"] for took in rows):
                numbers = [{**took, **took["stages_s"]} for took in rows]
                fields = [f for f, value in numbers[0].items() if isinstance(value, int | float)]
                medians[name] = {f: statistics.median(n.get(f, 0) for n in numbers) for f in fields}
        for name, rows in runs.items():
            if name not in medians:
                ends = next(took["outcome"] for took in rows if took["outcome"])
                print(f"| {model} | {name} | {ends}" + " |" * 8)
                continue
            found = medians[name]
            plain = medians.get("litert-torch" + "".join(name.partition(":")[1:]), {})
            cells = []
            for field, unit in (("wall_s", 1), ("pss_bytes", 1e9)):
                cells.append(f"{found[field] / unit:.2f}")
                cells.append(f"{found[field] / plain[field]:.3f}" if plain else "")
            for field, unit in (("rss_bytes", 1e9), ("cpu_s", 1), ("file_bytes", 1e9)):
                cells.append(f"{found[field] / unit:.2f}")
            stages = [f"{stage} {found[stage]:.1f}" for stage in rows[0]["stages_s"]]
            print(f"| {model} | {name} | {' | '.join(cells)} | {', '.join(stages)} |")


def available(names: Sequence[str]) -> list[str]:
    """Leaves out converters whose flags this edgezoo does not have."""
    text = subprocess.run([EDGEZOO, "convert", "--help"], capture_output=True, text=True).stdout
    known, kept = set(re.findall(r"--[a-z-]+", text)), []
    for name in names:
        flags = CONVERTERS[name.partition(":")[0]][0]
        if missing := set(re.findall(r"--[a-z-]+", flags)) - known:
            print(f"{name} left out: edgezoo has no {', '.join(missing)}", file=sys.stderr)
        else:
            kept.append(name)
    return kept


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [f"{c}:{v}".rstrip(":") for v in PREFILL for c in CONVERTERS]
    usual = [*CONVERTERS, "edgezoo-2:6"]
    parser.add_argument("converters", nargs="*", metavar="CONVERTER", default=usual)
    parser.add_argument("--model", action="append", choices=MODELS, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--limit-gib", type=float, default=22)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    asked = parser.parse_args()
    if unknown := set(asked.converters) - set(every):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(every)}")
    names, runs = available(asked.converters), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for model in asked.model if names else ():
            runs[model] = measure(model, names, asked.rounds, folder, int(asked.limit_gib * 2**30))
            if asked.json:
                asked.json.write_text(json.dumps(runs, indent=2))
            if not asked.folder:
                shutil.rmtree(folder / model)
    print_table(runs)
    ends = [took["outcome"] for rows in runs.values() for row in rows.values() for took in row]
    sys.exit(any(end.startswith("failed") for end in ends))


def child() -> None:
    """Runs what the benchmark starts of itself."""
    name, source, output, *lengths = sys.argv[2:]
    work = copy_and_hash if name.startswith("floor") else convert_with_litert_torch
    work(name, Path(source), Path(output), [int(n) for n in lengths])


if __name__ == "__main__":
    child() if sys.argv[1:2] == ["--child"] else main()
