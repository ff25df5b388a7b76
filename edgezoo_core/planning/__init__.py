"""What a conversion will take and give, before it spends anything: config, names, headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgezoo_core import recipe as recipes
from edgezoo_core import sources
from edgezoo_core.adapter_sources import NamedAdapter, name_adapters
from edgezoo_core.compiler import workers
from edgezoo_core.engines import Engine
from edgezoo_core.errors import RecipeError
from edgezoo_core.planning import costs, resources
from edgezoo_core.planning.examination import Request, examine
from edgezoo_core.planning.result import Disk, Finding, Plan, refuse
from edgezoo_core.shapes import Shapes
from edgezoo_core.sources import Prospect
from edgezoo_core.types import Progress, Recipe, silent

__all__ = ["Disk", "Finding", "Plan", "Request", "examine", "plan", "refuse", "request"]


def plan(
    text: str,
    *,
    recipe: str | None = None,
    shapes: Shapes | None = None,
    output: Path = Path(),
    force: bool = True,
    revision: str | None = None,
    family: str | None = None,
    card: str | None = None,
    adapters: Sequence[str] = (),
    engine: Engine = "streaming",
    jobs: int | None = None,
    use_cache: bool = True,
    with_bundle: bool = True,
    calibration: Path | None = None,
    progress: Progress = silent,
) -> Plan:
    """Says what `edgezoo_core.zoo.convert` with the same arguments would take, give, and meet.

    Of a repo, config.json, the index and the headers of its safetensors are fetched, nothing else.

    Args:
        text: A model id, `org/name[@revision]`, or a folder.
        recipe: Name of a recipe, or path of a recipe file; the card's default otherwise.
        shapes: Prefill lengths, KV cache, mask; the card's otherwise.
        output: A folder, or a path that ends in `.tflite`.
        force: Whether what stands there may be replaced.
        revision: Branch, tag or commit of the repo.
        family: Chooses between families that claim one architecture.
        card: Id of the card that describes the files, where they have no config.json.
        adapters: PEFT LoRA adapters to merge.
        engine: `streaming`, or `litert` for litert-torch's own path.
        jobs: Workers that trace side by side; None takes what cores and memory allow.
        use_cache: Whether traces and skeletons that are kept count.
        with_bundle: Whether a .litertlm is made, too, if the source has a tokenizer.
        calibration: A text file for recipes that calibrate, in place of the carried one.
        progress: Told of each stage.

    Raises:
        EdgezooError: The target cannot be looked at, or there is no such recipe. What stands in the
            way of a conversion is no exception but a finding of the plan.
    """
    asked = recipes.resolve(recipe) if recipe else None
    prospect = sources.look(text, revision=revision, card=card, progress=progress)
    wanted = request(
        prospect,
        recipe=asked,
        shapes=shapes,
        output=output,
        force=force,
        family=family,
        adapters=name_adapters(adapters, progress),
        engine=engine,
        jobs=jobs,
        use_cache=use_cache,
        with_bundle=with_bundle,
        calibration=calibration,
    )
    speed = _probe(output, progress)
    return examine(text, prospect, wanted, is_full=True, speed=speed, progress=progress)


def _probe(output: Path, progress: Progress) -> costs.Speed:
    """Measures this machine, on the disk that the output goes to."""
    progress("measuring this machine")
    return costs.probe(resources.existing(output))


def request(
    prospect: Prospect,
    *,
    recipe: Recipe | None,
    shapes: Shapes | None,
    output: Path,
    force: bool,
    family: str | None,
    adapters: tuple[NamedAdapter, ...],
    engine: Engine,
    jobs: int | None,
    use_cache: bool,
    with_bundle: bool,
    calibration: Path | None,
) -> Request:
    """Completes what was asked for by the card's defaults and the machine's.

    Raises:
        RecipeError: A calibration text is named for a recipe that does not calibrate.
    """
    card = prospect.target.card
    chosen = recipe or recipes.resolve(card.default_recipe if card else recipes.DEFAULT)
    if chosen.is_compensated and engine == "litert":
        raise RecipeError(
            f"recipe {chosen.name} compensates, and litert-torch's path rounds each weight by"
            " itself",
            remedy="leave out --engine litert",
        )
    if calibration is not None and not chosen.calibrates:
        raise RecipeError(
            f"recipe {chosen.name} does not calibrate, and reads no text",
            remedy="leave out --calibration, or choose a recipe that does: int8 or int4",
        )
    return Request(
        chosen,
        shapes or Shapes(),
        output,
        force,
        family,
        adapters,
        engine,
        jobs or workers.default_jobs(),
        use_cache,
        with_bundle,
        calibration,
    )
