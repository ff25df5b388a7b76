"""What each choice loses by itself: the model reads a passage with one group of weights rounded.

All variants go through the model together, layer by layer, so that the weights of a layer are read
once: it takes the exact activations, and those of every variant begun before, and begins new ones
for its own. At the end the exact model's logits judge what each variant says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call

from edgezoo_core import model, parity
from edgezoo_core.calibrating.choice import quantized_activations
from edgezoo_core.types import LazyTensor, Progress

if TYPE_CHECKING:
    from edgezoo_core.model import AuthoredModel

#: Variants whose logits are judged at a time: the head is read once for all of them.
_TOGETHER = 4
_PREFIX = "transformer_blocks.{}."

#: What a block is given, and what it gives: activations [1, T, E], and its cache.
_Pass = Callable[["_Block", torch.Tensor, Sequence[Any]], tuple[torch.Tensor, Any]]


@dataclass(frozen=True, slots=True)
class Rounding:
    """A weight as some format has it.

    Attributes:
        read: Returns what its codes stand for, float32 [rows, columns]: what the recipe folds is
            taken out of the rows again, where producers are divided by it, but not out of columns.
        path: The Linear that reads with it, None if it is only looked up.
        powers: What its columns are multiplied by, float32 [columns], None for nothing.
        is_dynamic: Whether what it reads is quantized, too.
    """

    read: Callable[[], torch.Tensor]
    path: str | None
    powers: torch.Tensor | None
    is_dynamic: bool


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """A choice for a group of weights.

    Attributes:
        layer: Whose weights they are, None outside of the blocks.
        roundings: By name of the module's parameter.
    """

    layer: int | None
    roundings: Mapping[str, Rounding]


def measure(
    authored: AuthoredModel, variants: Sequence[Variant], tokens: Sequence[int], progress: Progress
) -> list[float]:
    """Returns the mean KL of each variant in nats, from the float32 model's own probabilities.

    Memory: the weights of a layer or of the head in float32, and the activations of each variant.

    Args:
        authored: The model, parameters on meta; used up.
        variants: Each is tried by itself.
        tokens: What is read.
        progress: Told how far it is.
    """
    reading = _Reading(authored, tokens, progress)
    with torch.inference_mode():
        exact = reading.through(variants)
        losses = reading.losses(exact)
    return [losses[variant] for variant in variants]


class _Reading:
    """One passage that the model reads in many variants."""

    def __init__(self, authored: AuthoredModel, tokens: Sequence[int], progress: Progress) -> None:
        self._module: Any = authored.module
        self._tokens = torch.tensor([list(tokens)], dtype=torch.int32)
        self._weights = _Replaceable(authored.weights)
        self._progress = progress
        self._begun: list[tuple[Variant, torch.Tensor]] = []
        self._inner: Sequence[Variant] = ()
        blocks: Any = self._module.transformer_blocks
        self._blocks = [_Block(index, block) for index, block in enumerate(blocks)]
        self._module.transformer_blocks = torch.nn.ModuleList(self._blocks)
        model.on_demand(self._module, self._weights)

    def through(self, variants: Sequence[Variant]) -> torch.Tensor:
        """Takes all variants through the layers; returns exact logarithms of probabilities."""
        self._begun = [(v, self._embedded(v)) for v in variants if v.layer is None]
        self._inner = [v for v in variants if v.layer is not None]
        return self._run(self._tokens, self._fork).log_softmax(-1)

    def losses(self, exact: torch.Tensor) -> dict[Variant, float]:
        """Returns the mean KL of each variant, by logarithms of probabilities, [T, V]."""
        batches = [[pair] for pair in self._begun if pair[0].layer is None]
        inner = [pair for pair in self._begun if pair[0].layer is not None]
        batches += [inner[i : i + _TOGETHER] for i in range(0, len(inner), _TOGETHER)]
        found: dict[Variant, float] = {}
        probable = exact.exp()
        for number, batch in enumerate(batches, 1):
            logits = self._ended(batch).log_softmax(-1)
            for (variant, _), said in zip(batch, torch.split(logits, len(exact)), strict=True):
                found[variant] = float((probable * (exact - said)).sum(-1).mean())
            self._progress.advance(number, len(batches))
        return found

    def _run(self, tokens: torch.Tensor, how: _Pass) -> torch.Tensor:
        for block in self._blocks:
            block.how = how
        return parity.run(self._module, tokens)[0]

    def _embedded(self, variant: Variant) -> torch.Tensor:
        """Returns what the first layer is given."""
        found = []

        def stop(block: _Block, x: torch.Tensor, rest: Sequence[Any]) -> Any:
            found.append(x)
            raise _StoppedError

        with self._rounded(variant), suppress(_StoppedError):
            self._run(self._tokens, stop)
        return found[0]

    def _fork(
        self, block: _Block, x: torch.Tensor, rest: Sequence[Any]
    ) -> tuple[torch.Tensor, Any]:
        prefix = _PREFIX.format(block.index)
        exact = {
            name: self._weights[f"{prefix}{name}"].read().float()
            for name, _ in block.held.named_parameters()
        }
        given: tuple[torch.Tensor, Any] = functional_call(block.held, exact, (x, *rest))
        self._begun = [
            (variant, functional_call(block.held, exact, (y, *rest))[0])
            for variant, y in self._begun
        ]
        for variant in self._inner:
            if variant.layer == block.index:
                rounded = {n.removeprefix(prefix): r.read() for n, r in variant.roundings.items()}
                with _computing(block.held, prefix, variant):
                    y = functional_call(block.held, exact | rounded, (x, *rest))[0]
                self._begun.append((variant, y))
        self._progress.advance(block.index + 1, len(self._blocks))
        return given

    def _ended(self, batch: Sequence[tuple[Variant, torch.Tensor]]) -> torch.Tensor:
        """Returns the logits of what the last layer gave, one variant behind the other."""
        x = torch.cat([y for _, y in batch], 1)
        with self._rounded(batch[0][0]) if batch[0][0].layer is None else ExitStack():
            # Behind the layers each token is by itself, and the ids do not matter any more.
            ids = self._tokens[:, :1].expand(-1, x.shape[1])
            return self._run(ids, lambda block, _, rest: (x, rest[_CACHE]))

    @contextmanager
    def _rounded(self, variant: Variant) -> Iterator[None]:
        self._weights.rounded = {name: _Rounded(r) for name, r in variant.roundings.items()}
        try:
            with _computing(self._module, "", variant):
                yield
        finally:
            self._weights.rounded = {}


#: Where a block's cache stands among what it is given: rope, mask, positions, cache.
_CACHE = 3


class _StoppedError(Exception):
    """The model need not be run any further."""


class _Block(torch.nn.Module):
    """Stands in a block's place; `how` says what is done with it."""

    def __init__(self, index: int, block: Any) -> None:
        super().__init__()
        self.config = block.config
        self.index = index
        self.how: _Pass
        # In a tuple it is no submodule: nobody else is to bring its weights.
        self._held = (block,)

    @property
    def held(self) -> torch.nn.Module:
        """The block itself, parameters on meta."""
        held: torch.nn.Module = self._held[0]
        return held

    def forward(self, x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, Any]:
        """Takes what a block takes, and returns activations [1, T, E] and its cache."""
        return self.how(self, x, rest)


@dataclass(slots=True)
class _Rounded:
    """A rounded weight in place of a checkpoint's tensor."""

    rounding: Rounding
    shape: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    slices: tuple[Any, ...] = ()

    def read(self) -> torch.Tensor:
        """Returns what its codes stand for."""
        return self.rounding.read()


@dataclass(slots=True)
class _Replaceable(Mapping[str, LazyTensor]):
    """A module's weights, some of them as a variant has them."""

    weights: Mapping[str, LazyTensor]
    rounded: Mapping[str, LazyTensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LazyTensor:
        return self.rounded.get(name) or self.weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@contextmanager
def _computing(module: torch.nn.Module, prefix: str, variant: Variant) -> Iterator[None]:
    """Lets the Linears of a variant take activations as the runtime gives them."""
    with ExitStack() as stack:
        for rounding in variant.roundings.values():
            if rounding.path:
                linear = module.get_submodule(rounding.path.removeprefix(prefix))
                stack.enter_context(linear.register_forward_pre_hook(_reading_as(rounding)))
        yield


def _reading_as(rounding: Rounding) -> Callable[[Any, Any], tuple[torch.Tensor]]:
    def change(_: Any, arguments: Any) -> tuple[torch.Tensor]:
        x = arguments[0] if rounding.powers is None else arguments[0] / rounding.powers
        if rounding.is_dynamic:
            x = quantized_activations(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return (x,)

    return change
