"""LoRA adapters met with a checkpoint, and added to its rows as they stream through.

The result is bit for bit that of peft's `merge_and_unload` on a float32 base; `LoraPair.product`
says the limits. Merging works on the checkpoint's own tensors, before any fusion, and so is the
same for all families.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from edgezoo_core.adapters import Adapter, LoraPair, StoredCopy, open_adapter
from edgezoo_core.checkpoint import Checkpoint
from edgezoo_core.errors import CheckpointError, listing, nearest
from edgezoo_core.tensor_files import StoredTensor

logger = logging.getLogger(__name__)

#: The products B @ A of a tensor are made whole, and kept while its rows pass, up to so much
#: memory: the layers of a model of 2B parameters, not its embedding.
WHOLE_BYTES = 64 << 20

_HEAD = "lm_head"
_Part = TypeVar("_Part", LoraPair, StoredCopy)


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """Adapters bound to a checkpoint by `bind_adapters`, in the order in which they are added."""

    adapters: tuple[Adapter, ...]
    _shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    _copies: Mapping[str, Sequence[StoredCopy]] = field(repr=False)
    _pairs: Mapping[str, Sequence[LoraPair]] = field(repr=False)
    _products: dict[str, list[torch.Tensor]] = field(repr=False, compare=False)  # of one tensor

    def touches(self, name: str) -> bool:
        """Says whether merging changes this tensor of the checkpoint."""
        return name in self._copies or name in self._pairs

    def record(self) -> list[dict[str, Any]]:
        """Returns what the manifest says of them."""
        return [adapter.record() for adapter in self.adapters]

    def to_json(self) -> list[tuple[str, float, str]]:
        """Returns what `open_adapters` takes, as plain values."""
        return [(str(a.folder), a.weight, a.source) for a in self.adapters]

    def merge(self, name: str, start: int, rows: torch.Tensor) -> None:
        """Merges all adapters into some rows of a tensor, in place.

        Rows may come in any number, but few at a time waste work in tensors of over WHOLE_BYTES.

        Args:
            name: As the checkpoint spells it; nothing happens to one that no adapter touches.
            start: Index of the first row.
            rows: float32 [n, in].

        Raises:
            CheckpointError: Two adapters bring different weights in place of this one.
            ValueError: These are no float32 rows of the tensor.
        """
        if not self.touches(name):
            return
        height, width = self._shapes[name]
        stop = start + len(rows)
        fits = rows.shape[1:] == (width,) and 0 <= start <= stop <= height
        if rows.dtype != torch.float32 or not fits:
            raise ValueError(
                f"{name} {[height, width]}: no rows {start} to {stop} are"
                f" {rows.dtype} {list(rows.shape)}"
            )
        copies = [copy.read(start, stop) for copy in self._copies.get(name, ())]
        if any(not torch.equal(copies[0], other) for other in copies[1:]):
            raise CheckpointError(
                f"two adapters bring a different weight each in place of {name}",
                remedy="merge one of them only",
            )
        # peft loads every adapter, and with it the copies, before it merges the first.
        if copies:
            rows.copy_(copies[0])
        pairs = self._pairs.get(name, ())
        for pair, product in zip(pairs, self._rows_of(name, pairs, start, stop), strict=True):
            rows += product * pair.scaling

    def merged(self, checkpoint: Checkpoint) -> Checkpoint:
        """Returns the checkpoint with all adapters merged in, in float32, as tensors are read."""

        def change(name: str, stored: StoredTensor) -> StoredTensor:
            def merge(values: torch.Tensor) -> torch.Tensor:
                values = values.to(torch.float32, copy=True)
                self.merge(name, 0, values)
                return values

            return stored.changed(merge) if self.touches(name) else stored

        tensors = {name: change(name, tensor) for name, tensor in checkpoint.tensors.items()}
        return replace(checkpoint, tensors=tensors)

    def _rows_of(
        self, name: str, pairs: Sequence[LoraPair], start: int, stop: int
    ) -> Iterator[torch.Tensor]:
        height, width = self._shapes[name]
        if 4 * height * width * len(pairs) > WHOLE_BYTES:
            yield from (pair.product(start, stop) for pair in pairs)
            return
        whole = self._products.get(name)
        if whole is None:
            whole = [pair.product(0, height) for pair in pairs]
            self._products.clear()
            if stop < height:
                self._products[name] = whole
        elif stop == height:
            self._products.clear()
        yield from (product[start:stop] for product in whole)


def open_adapters(
    parts: Iterable[tuple[str, float, str]], checkpoint: Checkpoint, tied: bool | None
) -> AdapterSet:
    """Opens adapters and binds them to a checkpoint.

    Args:
        parts: Folder, weight and source of each (see `edgezoo_core.adapters.open_adapter`).
        checkpoint: What they are merged into.
        tied: tie_word_embeddings of its config (see `bind_adapters`).

    Raises:
        CheckpointError: One cannot be read or merged exactly, or does not fit.
    """
    opened = [open_adapter(Path(folder), weight, source) for folder, weight, source in parts]
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    return bind_adapters(opened, shapes, source=checkpoint.source, tied=tied)


def bind_adapters(
    adapters: Iterable[Adapter],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    tied: bool | None = None,
) -> AdapterSet:
    """Finds the checkpoint's tensor for everything that the adapters bring.

    Args:
        adapters: In the order in which they are to be added.
        shapes: Of all tensors of the checkpoint, by name.
        source: The checkpoint's, `org/name@commit` or a path.
        tied: tie_word_embeddings of config.json. None where it does not say: then a checkpoint
            without lm_head.weight counts as tied.

    Raises:
        CheckpointError: Something meets no tensor, one of another shape, or tied embeddings.
    """
    if tied is None:
        tied = not any(f".{name}".endswith(f".{_HEAD}.weight") for name in shapes)
    adapters = tuple(adapters)
    copies: dict[str, list[StoredCopy]] = {}
    pairs: dict[str, list[LoraPair]] = {}
    for adapter in adapters:
        _warn_of_base(adapter, source)
        if tied:
            _refuse_tied(adapter, source)
        problems: list[str] = []
        for name, copy in _meet(adapter.copies, shapes, problems).items():
            copies.setdefault(name, []).append(copy)
        for name, pair in _meet(adapter.pairs, shapes, problems).items():
            pairs.setdefault(name, []).append(pair)
        if problems:
            raise CheckpointError(
                f"{adapter.source} does not fit {source}: {listing(problems)}",
                remedy="name an adapter that was trained on this checkpoint",
            )
    return AdapterSet(adapters, shapes, copies, pairs, {})


def _warn_of_base(adapter: Adapter, source: str) -> None:
    base, revision = (adapter.config.get(k) for k in ("base_model_name_or_path", "revision"))
    repo, _, commit = source.partition("@")
    # A folder is known by its own name only.
    if base and str(base).rstrip("/").split("/")[-1] != repo.rstrip("/").split("/")[-1]:
        logger.warning("%s was trained on %s, and is merged into %s", adapter.source, base, source)
    elif revision and commit and revision not in ("main", commit):
        logger.warning(
            "%s was trained on revision %s, and is merged into %s", adapter.source, revision, source
        )


def _refuse_tied(adapter: Adapter, source: str) -> None:
    # peft lets these pass with a warning: what was trained used one of the two weights only.
    modules = [*(p.module for p in adapter.pairs), *(c.module for c in adapter.copies)]
    bad = [module for module in modules if module.split(".")[-1] == _HEAD]
    bad += [pair.module for pair in adapter.pairs if pair.is_embedding]
    if adapter.config.get("modules_to_save"):
        bad += [copy.module for copy in adapter.copies]
    if bad:
        raise CheckpointError(
            f"{adapter.source} changes {listing(sorted(set(bad)))}, but in {source} the output head"
            " is tied to the embedding: merging would have to untie them",
            remedy="untie the checkpoint before: save it with an lm_head.weight of its own and"
            " tie_word_embeddings false",
        )


def _meet(
    parts: Iterable[_Part], shapes: Mapping[str, tuple[int, ...]], problems: list[str]
) -> dict[str, _Part]:
    met: dict[str, _Part] = {}
    for part in parts:
        name = f"{part.module}.weight"
        # Some checkpoints are saved from the model within, without the leading `model.`.
        others = [n for n in (f"model.{name}", name.removeprefix("model.")) if n in shapes]
        found = name if name in shapes else others[0] if len(others) == 1 else None
        if found is None:
            guess = nearest(name, shapes)
            problems.append(f"no tensor {name}" + (f" (nearest: {guess})" if guess else ""))
        elif shapes[found] != part.shape:
            expected = list(shapes[found])
            problems.append(f"{found}: found {list(part.shape)}, expected {expected}")
        elif found in met:
            problems.append(f"{found}: {met[found].module} and {part.module} both mean it")
        else:
            met[found] = part
    return met
