"""What a conversion costs: memory and seconds by stage. The only place with constants of either.

Seconds are those of a reference machine (two cores of a cloud server, 2026), taken from the stages
that `edgezoo convert --json` times; `Speed` scales them to this one. Memory is resident size, which
hardly depends on the machine. To fit them again, run `benchmarks/plan.py` on a quiet machine: it
prints predicted and measured values stage by stage, and the probes' own times for `_REFERENCE`.
"""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgezoo_core.planning.result import Basis
from edgezoo_core.planning.sizes import Sizes

#: Bytes per second that the time of a download is told by: 100 Mbit/s.
DOWNLOAD_RATE = 12_500_000

#: This process, before it streams and while; more for each row of the tallest matrix.
_LEADER_BYTES, _STREAMING_BYTES, _ROW_BYTES = 46_000_000, 67_500_000, 52
#: torch in this process: PyTorch files are read by it, and adapters merged.
_TORCH_BYTES = 240_000_000
#: A worker that traces: the libraries. A mask that is built in is held so many times.
_TRACER_BYTES, _MASKS_HELD = 672_000_000, 8
#: The worker that calibrates: the libraries, and the largest layer in float32 so many times.
_CALIBRATOR_BYTES, _LAYERS_HELD = 900_000_000, 2
#: It rounds: second moments of the largest group of layers (`calibrating.compensation`).
_MOMENTS_BYTES = 1_100_000_000
#: The worker that quantizes: the libraries, each layer in each signature, the scales so many times.
_QUANTIZER_BYTES, _QUANTIZER_LAYER_BYTES, _SCALES_HELD = 82_000_000, 280_000, 7
#: The worker that bundles: the libraries, and the tokenizer's files so many times.
_BUNDLER_BYTES, _TOKENIZERS_HELD = 385_000_000, 16
#: litert-torch's own path: the libraries, and each parameter.
_LITERT_BYTES, _LITERT_PARAMETER_BYTES = 1_200_000_000, 19.8

#: Seconds in Python: to start and to check the file, to import the libraries, to trace a signature,
#: to quantize the graph and each layer in each signature.
_START, _IMPORT, _TRACE, _QUANTIZE, _QUANTIZE_LAYER = 1.7, 6.0, 4.9, 0.6, 0.023
#: To calibrate: the libraries and the tokenizer, and per billion parameters.
_CALIBRATE, _CALIBRATE_PARAMETERS = 14.0, 90.0
#: To round weights so that their errors make up for each other; the same.
_COMPENSATE, _COMPENSATE_PARAMETERS = 8.0, 220.0
#: To import what reads tokenizers, and to try one, per million bytes of it.
_TOKENIZER, _TOKENIZER_MB = 7.4, 0.25
#: Seconds per gigabyte: of the checkpoint read, hashed and encoded; of it more in blocks; of the
#: artifact written, hashed, and synced; of the bundle copied and hashed.
_STREAM, _BLOCKS, _WRITE, _HASH, _SYNC, _BUNDLE = 2.0, 0.5, 0.4, 1.1, 0.45, 3.5
#: litert-torch's own path: to begin with, and per billion parameters.
_LITERT, _LITERT_PARAMETERS = 70.0, 90.0
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Speed:
    """How many times as long as the reference machine this one takes.

    Attributes:
        python: For Python code.
        hashing: For sha256, which streaming mostly is.
        disk: For writing and syncing.
    """

    python: float = 1.0
    hashing: float = 1.0
    disk: float = 1.0


#: Seconds of the probes on the reference machine.
_REFERENCE = Speed(python=0.0312, hashing=0.0077, disk=0.0142)
_PROBED_BYTES = 1 << 23
_ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do.

    Attributes:
        engine: `streaming` or `litert`.
        basis: What the cache has already; see `edgezoo_core.planning.Plan`.
        jobs: Workers that trace side by side.
        signatures: How many, decode included.
        layers: Blocks of the model.
        parameters: Numbers in the model.
        rows: Output channels of the tallest matrix: the vocabulary, mostly.
        has_blocks: Whether weights have scales by block.
        sizes: The artifact's.
        checkpoint_bytes: Weight files.
        bundle_bytes: 0 where none is made.
        tokenizer_bytes: Files of the tokenizer.
        needs_torch: Whether PyTorch files are read, or adapters merged.
        largest: Numbers in the largest parameter.
        is_calibrated: Whether the model is run first, for what its recipe folds.
        is_compensated: Whether it is run for the errors of its weights, which make up for each
            other.
    """

    engine: str
    basis: Basis
    jobs: int
    signatures: int
    layers: int
    parameters: int
    rows: int
    has_blocks: bool
    sizes: Sizes
    checkpoint_bytes: int
    bundle_bytes: int
    tokenizer_bytes: int
    needs_torch: bool
    largest: int
    is_calibrated: bool
    is_compensated: bool


def memory(work: Work) -> dict[str, int]:
    """Returns the resident size of all processes together, by stage."""
    torch_bytes = _TORCH_BYTES if work.needs_torch else 0
    found: dict[str, int] = {}
    if work.is_calibrated:
        found["calibrating"] = _CALIBRATOR_BYTES + _LAYERS_HELD * 4 * work.largest
        if work.is_compensated:
            found["calibrating"] += _MOMENTS_BYTES
    if work.engine == "litert":
        found["litert"] = int(_LITERT_BYTES + _LITERT_PARAMETER_BYTES * work.parameters)
    else:
        masks = _MASKS_HELD * work.sizes.mask
        if work.basis not in ("trace", "skeleton"):
            found["trace"] = work.jobs * (_TRACER_BYTES + masks)
        if work.basis != "skeleton":
            layers = work.signatures * work.layers * _QUANTIZER_LAYER_BYTES
            found["skeleton"] = _QUANTIZER_BYTES + layers + masks + _SCALES_HELD * work.sizes.scales
    found = {stage: _LEADER_BYTES + size for stage, size in found.items()}
    streaming = _STREAMING_BYTES + _ROW_BYTES * work.rows + torch_bytes
    if work.engine != "litert":
        found["streaming"] = streaming
    if work.bundle_bytes:
        found["bundle"] = streaming + _BUNDLER_BYTES + _TOKENIZERS_HELD * work.tokenizer_bytes
    return found


def seconds(work: Work, speed: Speed) -> dict[str, float]:
    """Returns the wall time of each stage."""
    artifact, checkpoint = work.sizes.total / _GB, work.checkpoint_bytes / _GB
    found = {"start": _START * speed.python}
    if work.is_calibrated:
        billions = work.parameters / _GB
        took = _CALIBRATE + _CALIBRATE_PARAMETERS * billions
        if work.is_compensated:
            took += _COMPENSATE + _COMPENSATE_PARAMETERS * billions
        found["calibrating"] = took * speed.python
    if work.engine == "litert":
        found["litert"] = (_LITERT + _LITERT_PARAMETERS * work.parameters / _GB) * speed.python
    else:
        if work.basis not in ("trace", "skeleton"):
            rounds = math.ceil(work.signatures / work.jobs)
            found["trace"] = (_IMPORT + rounds * _TRACE) * speed.python
        if work.basis != "skeleton":
            layers = work.signatures * work.layers
            found["skeleton"] = (_QUANTIZE + layers * _QUANTIZE_LAYER) * speed.python
        rate = _STREAM + (_BLOCKS if work.has_blocks else 0.0)
        found["streaming"] = checkpoint * rate * speed.hashing + artifact * _WRITE * speed.disk
    found["hashing"] = artifact * _HASH * speed.hashing
    found["syncing"] = artifact * _SYNC * speed.disk
    if work.bundle_bytes:
        packed = work.bundle_bytes / _GB * _BUNDLE * max(speed.hashing, speed.disk)
        tokenizer = _TOKENIZER + _TOKENIZER_MB * work.tokenizer_bytes / 1e6
        found["bundle"] = tokenizer * speed.python + packed
    return found


def probe(folder: Path) -> Speed:
    """Measures this machine in about half a second.

    Args:
        folder: A folder on the disk that will be written; nothing stays there.
    """
    took = probe_seconds(folder)
    return Speed(
        took.python / _REFERENCE.python,
        took.hashing / _REFERENCE.hashing,
        took.disk / _REFERENCE.disk,
    )


def probe_seconds(folder: Path) -> Speed:
    """Returns the median seconds that the probes take here; that of the disk, if it can be written.

    They take turns: a machine that others use, too, changes its speed from one moment to the next.
    """
    block = bytes(_PROBED_BYTES)
    rounds = []
    for _ in range(_ROUNDS):
        python, hashing = _timed(_run_python), _timed(lambda: hashlib.sha256(block).digest())
        disk = _REFERENCE.disk
        with suppress(OSError):
            disk = _timed(lambda: _write(block, folder))
        rounds.append((python, hashing, disk))
    return Speed(*map(statistics.median, zip(*rounds, strict=True)))


def _run_python() -> object:
    """Does what tracing mostly does: makes small objects and looks them up by name."""
    table: dict[str, tuple[int, str]] = {}
    for i in range(60_000):
        name = f"node_{i % 4096}"
        table[name] = (i, name)
    return sorted(table.values())


def _write(block: bytes, folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
