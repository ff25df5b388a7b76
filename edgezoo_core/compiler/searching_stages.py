"""What workers do for promises: say what can be chosen, weigh it, and examine what came of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core.compiler.calibrating_stages import build
from edgezoo_core.searching import options
from edgezoo_core.types import Progress, WeightFormat

if TYPE_CHECKING:
    from edgezoo_core.conversion.codes import Codes
    from edgezoo_core.conversion.rescaling import Rescaling
    from edgezoo_core.searching.options import Group
    from edgezoo_core.searching.sensitivity import Rounding, Variant


def choices(
    progress: Progress, job: Mapping[str, Any], adapters: Sequence[tuple[str, float, str]]
) -> dict[str, Any]:
    """Says for which groups of weights formats can be chosen, and for which they are the same.

    Returns:
        `groups`: what `options.Measured` reads, losses not known yet.
    """
    _, authored, plan = build(progress, job, adapters)
    from edgezoo_core import folds

    places = {
        target.parameter: place.name
        for place in folds.places(authored.module)
        for target in place.targets
        if target.axis
    }
    return {
        "groups": [
            {
                "name": group.name,
                "layer": group.layer,
                "parts": list(dict.fromkeys(r.part for r in group.rules)),
                "places": sorted({places[p] for p in group.parameters() if p in places}),
                "options": [
                    {
                        "format": fmt.name,
                        "loss": 0.0,
                        "size_bytes": group.size_bytes(fmt),
                        "work": group.work(fmt),
                    }
                    for fmt in group.formats()
                ],
            }
            for group in options.groups(plan.rules)
        ],
    }


def weigh(
    progress: Progress,
    job: Mapping[str, Any],
    adapters: Sequence[tuple[str, float, str]],
    text: str,
    calibrated: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Measures what each choice loses by itself.

    Args:
        progress: Told how far it is.
        job: The model; its recipe does not matter.
        adapters: What is merged into it.
        text: What is read.
        calibrated: Format -> `folds` and paths of `codes` that calibration found for it.

    Returns:
        `losses`: for each group, for each of its formats, mean KL in nats.
    """
    asked, authored, plan = build(progress, job, adapters)
    from edgezoo_core import folds
    from edgezoo_core import recipe as recipes
    from edgezoo_core.calibrating import passage
    from edgezoo_core.conversion import rescaling
    from edgezoo_core.conversion.codes import Codes
    from edgezoo_core.searching import sensitivity

    shapes = {n: tuple(w.shape) for n, w in authored.weights.items()}
    places = folds.places(authored.module)
    known: dict[str, tuple[Rescaling, Codes]] = {}
    for name, found in calibrated.items():
        exponents = recipes.read_folds(found["folds"], "calibration")
        factors = rescaling.build(places, exponents, shapes, asked.model.source)
        known[name] = factors, Codes(map(Path, found["codes"]))
    groups = options.groups(plan.rules)
    variants: dict[tuple[int, int], Variant] = {}
    for number, group in enumerate(groups):
        for position, fmt in enumerate(group.formats()):
            if fmt.name in known:
                roundings = dict(_roundings(group, fmt, *known[fmt.name]))
                variants[number, position] = sensitivity.Variant(group.layer, roundings)
    config: Any = authored.module.config
    tokens = passage.tokens(
        text, asked.folder, config.vocab_size, authored.context_length, count=options.TOKENS
    )
    progress(f"weighing {len(variants)} choices on {len(tokens)} tokens")
    measured = sensitivity.measure(authored, list(variants.values()), tokens, progress)
    losses = [[0.0 for _ in group.formats()] for group in groups]
    for (number, position), loss in zip(variants, measured, strict=True):
        losses[number][position] = loss
    return {"losses": losses, "tokens": len(tokens)}


def refer_held_out(
    progress: Progress,
    job: Mapping[str, Any],
    adapters: Sequence[tuple[str, float, str]],
    text: str,
    longest: int,
    folder: str,
) -> dict[str, Any]:
    """Lets the model read the passages that files are examined on; its logits go to a folder.

    Returns:
        `passages`: tokens of each.
    """
    _, authored, _ = build(progress, job, adapters)
    from edgezoo_core.calibrating import passage
    from edgezoo_core.compiler.job import Job
    from edgezoo_core.verification import exam, reference
    from edgezoo_core.verification.runs import Passage

    config: Any = authored.module.config
    passages = passage.passages(
        text,
        Job.from_json(job).folder,
        config.vocab_size,
        min(longest, authored.context_length),
        length=exam.TOKENS,
        count=exam.PASSAGES,
    )
    progress("the model reads what files are examined on")
    forward = reference.by_author(authored.module, authored.weights)
    for number, tokens in enumerate(passages):
        where = Path(folder) / str(number)
        where.mkdir()
        reference.score(forward, Passage(tuple(tokens), 1), where)
        progress.advance(number + 1, len(passages))
    return {"passages": passages}


def examine_held_out(
    progress: Progress, path: str, passages: Sequence[Sequence[int]], folder: str
) -> dict[str, Any]:
    """Lets a file read the passages; returns what it loses (`edgezoo_core.verification.exam`)."""
    gc.enable()
    import tempfile

    from edgezoo_core.runtime import Session
    from edgezoo_core.verification import exam, subject
    from edgezoo_core.verification.runs import Floats, Passage

    read = [Passage(tuple(tokens), 1) for tokens in passages]
    right = [exam.logits(Path(folder) / str(number)) for number in range(len(read))]
    with Session(Path(path)) as session, tempfile.TemporaryDirectory(dir=folder) as scratch:

        def reader(passage: Passage) -> Floats:
            subject.score(session, passage, Path(scratch))
            return exam.logits(Path(scratch))

        return asdict(exam.examine(read, right, reader))


def _roundings(
    group: Group, fmt: WeightFormat, factors: Rescaling, codes: Codes
) -> Iterator[tuple[str, Rounding]]:
    """Yields each weight of a group as a format has it."""
    import torch

    from edgezoo_core.conversion import rows
    from edgezoo_core.searching.sensitivity import Rounding

    for parameter in group.parameters():
        rule = next(r for r in group.rules if r.parameter == parameter)

        def read(parameter: str = parameter, count: int = rule.shape[0]) -> torch.Tensor:
            encoded = codes.rows(parameter, fmt, 0, count)
            if encoded is None:
                raise LookupError(f"calibration left out {parameter}")
            values = rows.decode(encoded, fmt)
            if parameter in factors.rows:
                values = values / factors.rows[parameter][:, None]
            return torch.from_numpy(values)

        powers = factors.columns.get(parameter)
        yield (
            parameter,
            Rounding(
                read,
                group.path(parameter),
                None if powers is None else torch.from_numpy(powers),
                fmt.is_dynamic,
            ),
        )
