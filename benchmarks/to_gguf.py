"""A Hugging Face folder as a GGUF file without a vocabulary, by llama.cpp's own converter.

    python benchmarks/to_gguf.py llama.cpp CHECKPOINT model.gguf --outtype f32

The first argument is a checkout of llama.cpp, or the folder vendor/llama.cpp in the source archive
of llama-cpp-python. Its converter knows a tokenizer by a hash of what it makes of a sample text and
refuses the others. The benchmarks feed token ids, so no tokenizer is converted: the file says
"none" and how many tokens there are. Weights and hyperparameters are the converter's own work. The
file is smaller by the vocabulary, as a .tflite is that has none either.
"""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Converts what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--outtype", default="f32", help="of the matrices (%(default)s)")
    options = parser.parse_args()
    write(options.llama_cpp, options.checkpoint, options.output, options.outtype)


def write(llama_cpp: Path, checkpoint: Path, output: Path, outtype: str) -> None:
    """Runs the converter in this process, whose modules and arguments it changes."""
    # In front of this folder, whose conversion.py has the name of llama.cpp's package.
    sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
    package: Any = importlib.import_module("conversion")
    architecture = package.get_model_architecture(
        package.ModelBase.load_hparams(checkpoint, False), package.ModelType.TEXT
    )

    def no_vocabulary(model: Any) -> None:
        model._set_vocab_none()
        model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])

    package.get_model_class(architecture).set_vocab = no_vocabulary
    script = llama_cpp / "convert_hf_to_gguf.py"
    sys.argv = [str(script), str(checkpoint), "--outtype", outtype, "--outfile", str(output)]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
