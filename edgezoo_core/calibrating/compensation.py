"""All integer weights of a model, rounded by what they read of a text.

The second moments of a layer's input are summed over the passages. As many layers as fit into
memory are taken at a time, and the passages are read once for each such group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgezoo_core.calibrating import rounding
from edgezoo_core.calibrating.activations import Listening
from edgezoo_core.conversion import codes, rows
from edgezoo_core.conversion.rescaling import Rescaling
from edgezoo_core.errors import CheckpointError
from edgezoo_core.types import Progress, QuantPlan, WeightFormat

if TYPE_CHECKING:
    from edgezoo_core.model import AuthoredModel

_SUFFIX = ".weight"
#: Bytes of second moments that are held at a time.
_BUDGET = 3 << 29


@dataclass(slots=True)
class _Weight:
    """A weight that is to be rounded.

    Attributes:
        parameter: Name of the module's parameter.
        format: How it is stored.
        path: The Linear that reads with it, None if it is only looked up.
        columns: Input channels.
        moments: Second moments of the input, for each part that makes up for itself.
    """

    parameter: str
    format: WeightFormat
    path: str | None
    columns: int
    moments: list[torch.Tensor] = field(default_factory=list)

    def spans(self) -> list[tuple[int, int]]:
        return list(rounding.spans(self.columns, self.format))

    def moments_bytes(self) -> int:
        return sum(4 * (b - a) ** 2 for a, b in self.spans()) if self.path else 0

    def uses(self) -> list[rounding.Use]:
        if not self.path:
            return [rounding.looked_up(self.columns)]
        found = [rounding.use(m) for m in self.moments]
        self.moments = []
        return found


def compensate(
    authored: AuthoredModel,
    plan: QuantPlan,
    rescaling: Rescaling,
    passages: Sequence[Sequence[int]],
    folder: Path,
    progress: Progress,
) -> None:
    """Rounds every integer weight and writes its codes into a folder.

    Memory: 1.5 GB of second moments, the largest weight in float32 and its codes, and what one
    layer takes while it reads.

    Args:
        authored: The model, parameters on meta; used up.
        plan: The formats.
        rescaling: What the values are multiplied by before.
        passages: Tokens, each passage by itself.
        folder: Where the codes go (see `edgezoo_core.conversion.codes`).
        progress: Told how many weights are done.

    Raises:
        CheckpointError: A weight is not finite.
    """
    # Before a head that nobody runs takes the place of the model's.
    weights = _weights(authored, plan)
    listening = Listening(authored)
    done = 0
    for group in _groups(weights):
        listeners = {w.path: _summing(w, rescaling) for w in group if w.path}
        for passage in passages if listeners else ():
            listening.read(passage, listeners)
        for weight in group:
            _write(authored, weight, rescaling, folder)
            done += 1
            progress.advance(done, len(weights))


def _weights(authored: AuthoredModel, plan: QuantPlan) -> list[_Weight]:
    module: Any = authored.module
    linears = {n for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)}
    found: dict[tuple[str, int, int | None], _Weight] = {}
    for rule in plan.rules:
        fmt, path = rule.format, None
        if fmt is None or fmt.is_float:
            continue
        if rule.operator == "FULLY_CONNECTED":
            path = rule.parameter.removesuffix(_SUFFIX)
            path = path if path in linears else "lm_head"  # which reads with the embedding
        key = (rule.parameter, fmt.bits, fmt.block_size)
        known = found.setdefault(key, _Weight(rule.parameter, fmt, path, rule.shape[1]))
        known.path = known.path or path
    return list(found.values())


def _groups(weights: Sequence[_Weight]) -> Iterator[list[_Weight]]:
    group: list[_Weight] = []
    taken = 0
    for weight in weights:
        size = weight.moments_bytes()
        if group and taken + size > _BUDGET:
            yield group
            group, taken = [], 0
        group.append(weight)
        taken += size
    if group:
        yield group


def _summing(weight: _Weight, rescaling: Rescaling) -> Callable[[torch.Tensor], None]:
    powers = rescaling.columns.get(weight.parameter)
    weight.moments = [torch.zeros(b - a, b - a) for a, b in weight.spans()]

    def add(inputs: torch.Tensor) -> None:
        scaled = inputs if powers is None else inputs / torch.from_numpy(powers)
        for (start, stop), moments in zip(weight.spans(), weight.moments, strict=True):
            part = scaled[:, start:stop]
            moments.addmm_(part.T, part)

    return add


def _write(authored: AuthoredModel, weight: _Weight, rescaling: Rescaling, folder: Path) -> None:
    values = authored.weights[weight.parameter].read()
    if not bool(values.isfinite().all()):
        raise CheckpointError(
            f"{authored.model.source}: {weight.parameter} has values that are not finite",
            remedy="the checkpoint is damaged or its training diverged: obtain another",
        )
    if rescaling.touches(weight.parameter):
        values = torch.from_numpy(rescaling.matrix(weight.parameter, 0, values.float().numpy()))
    found = rounding.rounded(values, weight.uses(), weight.format)
    encoded = rows.stored(found.codes.numpy(), found.scales.numpy(), weight.format)
    codes.save(folder, weight.parameter, weight.format, encoded)
