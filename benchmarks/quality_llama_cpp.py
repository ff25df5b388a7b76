"""What llama.cpp's quantized files lose against a checkpoint, on quality.py's tokens.

    python benchmarks/quality_llama_cpp.py CHECKPOINT --llama-cpp llama.cpp --types Q8_0 Q4_0

Passages, reference and measures are those of quality.py, so its table and this one can stand side
by side. The checkpoint becomes a GGUF file in float32 (see to_gguf.py for what is left out), which
llama.cpp quantizes with its own defaults, without an importance matrix. The line F32 is that first
file: it tells how far llama.cpp is from transformers before anything is quantized, with its key and
value cache in float16 as it comes.

Needs llama-cpp-python, a checkout of llama.cpp of about its age for the converter (the source
archive of llama-cpp-python has one in vendor/llama.cpp), and gguf. `--folder` keeps the files:
4 bytes a parameter for F32, about 1.1 for Q8_0 and 0.6 for Q4_0.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import llama_cpp as library
import numpy as np
from gguf import GGUFReader, LlamaFileType
from quality import Examined, add_arguments, examine, prepare, show

from edgezoo_core.verification.exam import Reader
from edgezoo_core.verification.runs import Floats, Passage


@dataclass(frozen=True, slots=True)
class Stored:
    """The tensors of one type in a GGUF file.

    Attributes:
        type: As GGML names it.
        count: How many there are.
        size_bytes: Of their data.
        kinds: Their names, without the number of the block and ".weight".
    """

    type: str
    count: int
    size_bytes: int
    kinds: tuple[str, ...]


def main() -> None:
    """Makes the files, compares them and tells what is in them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="a checkout")
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q4_0"], help="(%(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="(%(default)s); several wait for each other busily, which is slow on a shared machine",
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="tokens read at once (%(default)s, as a .tflite does)"
    )
    parser.add_argument("--folder", type=Path, help="where the files are kept")
    options = parser.parse_args()
    library.llama_log_set(LOG, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = write(options, folder)
        exam = prepare(options)
        lost: dict[str, Examined] = {}
        for name, path in files.items():
            with llama_cpp(path, options.tokens, options.batch, options.threads) as read:
                lost[name] = examine(exam, path, read)
        stored = {name: tensors(path) for name, path in files.items()}
    if options.json:
        print(
            json.dumps(
                {n: asdict(lost[n]) | {"tensors": [asdict(s) for s in stored[n]]} for n in files}
            )
        )
        return
    show(lost)
    print("\n| file | type | tensors | MB | which |\n| --- | --- | --- | --- | --- |")
    for name, kinds in stored.items():
        for one in kinds:
            print(
                f"| {name} | {one.type} | {one.count} | {one.size_bytes / 1e6:.2f}"
                f" | {', '.join(one.kinds)} |"
            )


def log(level: int, text: bytes, _: object) -> None:
    """Prints llama.cpp's warnings and errors, GGML's levels 3 and 4."""
    if level in (3, 4):
        print(text.decode(errors="replace"), end="", file=sys.stderr)


LOG = library.llama_log_callback(log)
"""Takes the place of llama-cpp-python's own, which takes the levels for others (0.3.36)."""


def write(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Converts the checkpoint and quantizes the file; returns all files by the type's name."""
    files = {name: folder / f"{name.lower()}.gguf" for name in ("F32", *options.types)}
    # A process of its own: the converter replaces modules and keeps memory.
    command = [sys.executable, str(Path(__file__).with_name("to_gguf.py"))]
    command += [str(options.llama_cpp), str(options.checkpoint), str(files["F32"])]
    subprocess.run(command, check=True, stdout=sys.stderr)
    for name in options.types:
        quantize(files["F32"], files[name], name, options.threads)
    return files


def quantize(source: Path, output: Path, name: str, threads: int) -> None:
    """Quantizes a float32 GGUF file as `llama-quantize` does without further options.

    Args:
        source: The file.
        output: Where the result goes.
        name: As in gguf's LlamaFileType, without MOSTLY_.
        threads: How many work at it.
    """
    wanted = library.llama_model_quantize_default_params()
    wanted.ftype, wanted.nthread = LlamaFileType[f"MOSTLY_{name}"].value, threads
    failed = library.llama_model_quantize(
        str(source).encode(), str(output).encode(), ctypes.byref(wanted)
    )
    if failed:
        sys.exit(f"llama.cpp could not quantize {source} to {name}")


@contextmanager
def llama_cpp(path: Path, slots: int, batch: int, threads: int) -> Iterator[Reader]:
    """Opens a GGUF file in llama.cpp, on the CPU, with its other settings as they come.

    Args:
        path: The file.
        slots: Of the key and value cache, in tokens: the longest passage.
        batch: Tokens that are read at once.
        threads: How many compute.
    """
    library.llama_backend_init()
    settings = library.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = library.llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        sys.exit(f"llama.cpp could not load {path}")
    given = library.llama_context_default_params()
    given.n_ctx, given.n_batch, given.n_ubatch = slots, batch, batch
    given.n_threads = given.n_threads_batch = threads
    context = library.llama_init_from_model(model, given)
    if not context:
        sys.exit(f"llama.cpp could not make a context for {path}")
    vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))

    def read(passage: Passage) -> Floats:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        found = np.empty((len(passage.tokens), vocabulary), np.float32)
        for start in range(0, len(passage.tokens), batch):
            part = passage.tokens[start : start + batch]
            # Both stay referenced here: a batch holds bare pointers.
            tokens = (ctypes.c_int32 * len(part))(*part)
            wanted = (ctypes.c_int8 * len(part))(*[1] * len(part))
            one = library.llama_batch_get_one(tokens, len(part))
            one.logits = wanted  # behind every token, not behind the last one only
            if library.llama_decode(context, one):
                sys.exit(f"llama.cpp could not read a passage with {path}")
            logits = library.llama_get_logits(context)
            found[start : start + len(part)] = np.ctypeslib.as_array(
                logits, (len(part), vocabulary)
            )
        return found[passage.start - 1 :]

    yield read
    library.llama_free(context)
    library.llama_model_free(model)


def tensors(path: Path) -> list[Stored]:
    """Returns what a GGUF file stores, by type, the largest share first."""
    found: dict[str, list[tuple[str, int]]] = {}
    for tensor in GGUFReader(path).tensors:
        kind = ".".join(part for part in tensor.name.split(".") if not part.isdigit())
        entry = kind.removeprefix("blk.").removesuffix(".weight"), int(tensor.n_bytes)
        found.setdefault(tensor.tensor_type.name, []).append(entry)
    stored = [
        Stored(name, len(a), sum(size for _, size in a), tuple(sorted({kind for kind, _ in a})))
        for name, a in found.items()
    ]
    return sorted(stored, key=lambda one: -one.size_bytes)


if __name__ == "__main__":
    main()
