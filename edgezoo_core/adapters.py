"""One PEFT LoRA adapter: what it adds to which weights, and what it puts in their place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgezoo_core.adapter_files import (
    CONFIG,
    MERGE_BEFORE,
    WEIGHTS,
    open_tensors,
    parse_config,
    rank_and_scaling,
    refuse_endless,
)
from edgezoo_core.checkpoint import SourceFile, refuse_links, sha256
from edgezoo_core.errors import CheckpointError, listing

#: A product of fewer rows may take another kernel and round differently. Measured with AVX-512
#: kernels of MKL: 1 and 7 rows do, 32 and more do not, for ranks 1 to 256 and 1 or 2 threads.
EXACT_ROWS = 128

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True)
class LoraPair:
    """What an adapter adds to one weight: `B @ A * scaling`, or its transpose for an embedding.

    Attributes:
        module: As the adapter spells it, without `base_model.model.`.
        a: float32 [r, in]; of an embedding [r, V].
        b: float32 [out, r]; of an embedding [D, r].
        scaling: alpha / r, or alpha / sqrt(r), times the adapter's weight.
        is_embedding: Whether the product is transposed.
    """

    module: str
    a: torch.Tensor = field(repr=False)
    b: torch.Tensor = field(repr=False)
    scaling: float
    is_embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight that it is for."""
        shape = self.b.shape[0], self.a.shape[1]
        return shape[::-1] if self.is_embedding else shape

    def product(self, start: int, stop: int) -> torch.Tensor:
        """float32 [stop - start, in]: some rows of B @ A, not scaled.

        All rows at once are peft's bits anywhere. Fewer are on AVX-512; elsewhere they may differ
        by the last bit, as peft's own do between one thread and two.
        """
        rows = self.shape[0]
        # A wider window than asked for, so that few rows round as many do.
        low = max(0, min(start, rows - EXACT_ROWS))
        high = min(rows, max(stop, low + EXACT_ROWS))
        if self.is_embedding:
            window = (self.b @ self.a[:, low:high]).T
        else:
            window = self.b[low:high] @ self.a
        return window[start - low : stop - low]


@dataclass(frozen=True, slots=True)
class StoredCopy:
    """A whole weight that the adapter brings and that takes the place of the checkpoint's.

    peft saves one for each module of modules_to_save, and for an adapted embedding.
    """

    module: str
    shape: tuple[int, ...]
    _view: Any = field(repr=False)  # a tensor, or a slice of a safetensors file

    def read(self, start: int, stop: int) -> torch.Tensor:
        """float32 [stop - start, in]."""
        rows: torch.Tensor = self._view[start:stop]
        return rows.to(torch.float32)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that can be merged exactly.

    Attributes:
        source: `org/name@commit`, or the folder's path.
        folder: Where its files are.
        weight: What its scaling is multiplied by.
        config: The parsed adapter_config.json.
        pairs: In the order of their names.
        copies: In the order of their names.
        files: What was read.
    """

    source: str
    folder: Path
    weight: float
    config: Mapping[str, Any] = field(repr=False)
    pairs: tuple[LoraPair, ...] = field(repr=False)
    copies: tuple[StoredCopy, ...] = field(repr=False)
    files: tuple[SourceFile, ...]

    def record(self) -> dict[str, Any]:
        """Returns what the manifest says of it: JSON values only."""
        keys = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
        about = ("base_model_name_or_path", "revision", "peft_version")
        return {
            "source": self.source,
            "weight": self.weight,
            "files": [
                {"name": f.name, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in self.files
            ],
            **{key: self.config[key] for key in (*keys, *about) if key in self.config},
            "adapted_weights": len(self.pairs),
            "replaced_weights": len(self.copies),
        }


def open_adapter(folder: Path, weight: float = 1.0, source: str | None = None) -> Adapter:
    """Opens the adapter in a folder. A and B are read; nothing of it is executed.

    Args:
        folder: Holds adapter_config.json and adapter_model.safetensors or .bin.
        weight: Multiplies the adapter's scaling, as peft's `scale_layer` does.
        source: `org/name@commit`, where the folder is of the hub's cache.

    Raises:
        CheckpointError: A file is missing or damaged, the config asks for what cannot be merged
            exactly, or the tensors do not agree with it.
    """
    source = source or str(folder)
    refuse_links(folder, (CONFIG, *WEIGHTS))
    config = parse_config(folder / CONFIG, source)
    if not math.isfinite(weight):
        raise CheckpointError(f"{source}: weight {weight}", remedy="give a finite weight")
    file = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(
            f"{source} has neither {' nor '.join(WEIGHTS)}",
            remedy="name a folder or repo that holds a PEFT adapter",
        )
    modules = open_tensors(folder / file, source)
    refuse_endless(config, modules, source)
    pairs, copies = [], []
    for module, parts in sorted(modules.items()):
        copy = parts.pop("weight", None)
        if copy is not None:
            copies.append(_stored_copy(module, copy, source))
        if parts:
            pairs.append(_lora_pair(module, parts, config, weight, source))
    _check_modules_to_save(config.get("modules_to_save") or [], copies, weight, source)
    files = tuple(
        SourceFile(name, (folder / name).stat().st_size, sha256(folder / name))
        for name in (CONFIG, file)
    )
    return Adapter(source, folder, weight, config, tuple(pairs), tuple(copies), files)


def _lora_pair(
    module: str, parts: Mapping[str, Any], config: Mapping[str, Any], weight: float, source: str
) -> LoraPair:
    kind = "lora_embedding" if "lora_embedding_A" in parts else "lora"
    if set(parts) != {f"{kind}_A", f"{kind}_B"}:
        raise CheckpointError(
            f"{source}: {module} has {listing(sorted(parts))}, and not an A and a B",
            remedy="obtain the adapter again",
        )
    a, b = parts[f"{kind}_A"][:], parts[f"{kind}_B"][:]
    rank, scaling = rank_and_scaling(config, module)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise CheckpointError(
            f"{source}: {module}: A {list(a.shape)} and B {list(b.shape)}"
            f" are not [{rank}, in] and [out, {rank}], as the config says",
            remedy="obtain config and weights from the same revision",
        )
    for letter, tensor in (("A", a), ("B", b)):
        if tensor.dtype not in _FLOATS or not torch.isfinite(tensor).all():
            what = f"is {tensor.dtype}" if tensor.dtype not in _FLOATS else "holds NaN or infinity"
            raise CheckpointError(
                f"{source}: {module}: {letter} {what}", remedy="obtain the adapter again"
            )
    # peft copies them into float32 parameters whatever they were saved as (autocast_adapter_dtype).
    a, b = a.to(torch.float32), b.to(torch.float32)
    return LoraPair(module, a, b, scaling * weight, kind == "lora_embedding")


def _stored_copy(module: str, view: Any, source: str) -> StoredCopy:
    shape = tuple(view.shape if isinstance(view, torch.Tensor) else view.get_shape())
    if len(shape) != 2 or view[:1].dtype not in _FLOATS:
        raise CheckpointError(
            f"{source}: it replaces {module}.weight {list(shape)}, which is no matrix of floats",
            remedy=MERGE_BEFORE,
        )
    return StoredCopy(module, shape, view)


def _check_modules_to_save(
    names: Iterable[str], copies: Iterable[StoredCopy], weight: float, source: str
) -> None:
    found = [copy.module for copy in copies]
    missing = [name for name in names if not any(module.endswith(name) for module in found)]
    if missing:
        raise CheckpointError(
            f"{source}: modules_to_save names what the weights lack: {listing(missing)}",
            remedy="obtain config and weights from the same revision",
        )
    if names and weight != 1:
        raise CheckpointError(
            f"{source}: weight {weight}, but modules_to_save replaces whole weights"
            f" ({listing(names)}), which no weight scales",
            remedy="merge it with weight 1",
        )
