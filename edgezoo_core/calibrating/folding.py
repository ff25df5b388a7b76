"""For each fold of a model, how far its channels are scaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgezoo_core import folds
from edgezoo_core.calibrating import activations, choice
from edgezoo_core.folds import Place
from edgezoo_core.types import Progress, QuantPlan

if TYPE_CHECKING:
    import torch

    from edgezoo_core.model import AuthoredModel

_SUFFIX = ".weight"


def choose(
    authored: AuthoredModel,
    plan: QuantPlan,
    tokens: Sequence[int],
    progress: Progress,
    *,
    is_compensated: bool,
) -> dict[str, list[int]]:
    """Lets a model read a text and returns exponents by place; none where nothing is gained.

    Args:
        authored: The model, parameters on meta; used up.
        plan: In which formats its weights will be stored.
        tokens: The text.
        progress: Told how many folds are done.
        is_compensated: Whether their errors will make up for each other (see `rounding`).
    """
    places = folds.places(authored.module)
    formats = {r.parameter: r.format for r in plan.rules if r.operator == "FULLY_CONNECTED"}
    chosen: dict[str, list[int]] = {}

    def listener(place: Place, readers: Sequence[str]) -> Callable[[torch.Tensor], None]:
        columns = next(t for t in place.targets if t.axis)

        def listen(inputs: torch.Tensor) -> None:
            weights = [authored.weights[name].read() for name in readers]
            exponents = choice.exponents(
                inputs,
                [
                    choice.Reader(choice.thinned(w, is_compensated=is_compensated), formats.get(n))
                    for n, w in zip(readers, weights, strict=True)
                ],
                groups=columns.groups,
                repeats=columns.repeats,
                is_compensated=is_compensated,
            )
            if any(exponents):
                chosen[place.name] = exponents
            done.append(place.name)
            progress.advance(len(done), len(places))

        return listen

    done: list[str] = []
    listeners = {}
    for place in places:
        readers = [t.parameter for t in place.targets if t.axis]
        # All readers read the same: the first tells of it.
        listeners[readers[0].removesuffix(_SUFFIX)] = listener(place, readers)
    activations.Listening(authored).read(tokens, listeners)
    return chosen
