"""From cells to tasks: the source, the recipe and the versions of each are known, and its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgezoo_core import artifact, cache, checkpoint, repo_files, sources
from edgezoo_core import recipe as recipes
from edgezoo_core.adapter_sources import NamedAdapter
from edgezoo_core.batch.matrix import Cell
from edgezoo_core.compiler import versions
from edgezoo_core.compiler.job import recipe_from_json, recipe_to_json
from edgezoo_core.errors import BatchError, EdgezooError, listing
from edgezoo_core.shapes import Shapes, complete
from edgezoo_core.sources import Prospect, Settled
from edgezoo_core.types import Progress, Recipe, silent

#: Version of what `Task.inputs` says.
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Task:
    """One conversion that a worker carries out, whichever machine it is on.

    Attributes:
        name: What its files in the store are called, without suffix; may begin with a folder.
        target: A model id, a hub repo without revision, or the path of a folder.
        commit: The repo's commit, None for a folder.
        family: Chooses between families that claim one architecture.
        card: Id of the card that describes the files.
        adapters: With their commits, as `edgezoo convert --adapter` takes them.
        recipe: What was asked for; a recipe file need not be there any more.
        shapes: Those that were named.
        is_verified: Whether the file is held against its source.
        with_bundle: Whether a .litertlm is made, too, if the source has a tokenizer.
        inputs: All that shapes the file: two tasks with the same inputs give the same bytes.
        source: Tasks of one value share a download.
        graph: Tasks of one value share a trace.
    """

    name: str
    target: str
    commit: str | None
    family: str | None
    card: str | None
    adapters: tuple[str, ...]
    recipe: Recipe
    shapes: Shapes
    is_verified: bool
    with_bundle: bool
    inputs: Mapping[str, Any]
    source: str
    graph: str

    @property
    def digest(self) -> str:
        """Sha256 of the inputs."""
        return cache.digest(self.inputs)

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {**asdict(self), "recipe": recipe_to_json(self.recipe)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Task:
        """Reads what `to_json` wrote."""
        return cls(
            **{
                **value,
                "adapters": tuple(value["adapters"]),
                "recipe": recipe_from_json(value["recipe"]),
                "shapes": Shapes(**value["shapes"]),
            }
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """A cell that cannot even be planned."""

    cell: Cell
    error: EdgezooError


@dataclass(frozen=True, slots=True)
class Matrix:
    """All tasks of a ZOO.toml.

    Attributes:
        tasks: In its order.
        prospects: By name of task, what is known of the source.
        refused: Cells of which no task can be made.
    """

    tasks: tuple[Task, ...]
    prospects: Mapping[str, Prospect]
    refused: tuple[Refused, ...]


def prepare(cells: Sequence[Cell], progress: Progress = silent) -> Matrix:
    """Finds out what each cell is made of: asks the hub, reads configs, hashes folders.

    Args:
        cells: See `edgezoo_core.batch.matrix.read`.
        progress: Told of each stage.

    Raises:
        BatchError: Two cells would write the same file.
    """
    preparing = _Preparing(progress)
    found: dict[str, tuple[Cell, Task, Prospect]] = {}
    refused = []
    for cell in cells:
        try:
            task, prospect = preparing.prepare(cell)
        except EdgezooError as e:
            refused.append(Refused(cell, e))
            continue
        other, same, _ = found.setdefault(task.name, (cell, task, prospect))
        if other is not cell:
            _refuse_same_name(other, same, cell, task)
    return Matrix(
        tuple(task for _, task, _ in found.values()),
        {name: prospect for name, (_, _, prospect) in found.items()},
        tuple(refused),
    )


def _refuse_same_name(cell: Cell, task: Task, other: Cell, same: Task) -> None:
    unlike = sorted(key for key, value in task.inputs.items() if same.inputs[key] != value)
    if not unlike:
        raise BatchError(f"({cell}) and ({other}) are the same", remedy="remove one of them")
    raise BatchError(
        f"({cell}) and ({other}) would both be written to {task.name}.tflite; they differ in"
        f" {listing(unlike)}",
        remedy="give one of the [[models]] a `folder`, or a recipe file another `name`",
    )


class _Preparing:
    """Takes one cell after the other; what several share is asked for once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._found: dict[tuple[str | None, ...], tuple[Prospect, Settled] | EdgezooError] = {}
        self._contexts: dict[str, int] = {}
        self._contents: dict[Path, Mapping[str, str]] = {}

    def prepare(self, cell: Cell) -> tuple[Task, Prospect]:
        found, settled = self._look(cell)
        target = found.target
        card = target.card
        recipe = recipes.resolve(cell.recipe or (card.default_recipe if card else recipes.DEFAULT))
        job = sources.job(settled.model, settled.config, Path(), card, recipe, cell.shapes)
        context_length = cell.shapes.kv_cache_length or self._context_length(settled)
        options = complete(job.shapes, job.base, context_length)
        adapters = [NamedAdapter(text, self._progress).fetch() for text in cell.adapters]
        files = self._content(target.folder) if target.folder else {}
        inputs = {
            "schema": _SCHEMA,
            "source": {"repo": target.repo, "commit": found.commit, "files": files},
            "adapters": [
                [weight, self._content(Path(folder)) if name == folder else name]
                for folder, weight, name in adapters
            ],
            "model": {"family": settled.plugin.family, "card": settled.model.card_id},
            "config": dict(settled.config),
            "recipe": recipe_to_json(recipe),
            "options": asdict(options),
            "versions": versions.identity(settled.plugin),
        }
        stem = Path(artifact.file_name(target.name, recipe.name, options.kv_cache_length))
        source = cache.digest({"source": inputs["source"]})
        shared = {k: inputs[k] for k in ("model", "config", "versions")}
        task = Task(
            name=str(Path(cell.folder) / stem.stem),
            target=str(target.folder) if target.folder else cell.target.split("@")[0],
            commit=found.commit,
            family=cell.family,
            card=cell.card,
            adapters=tuple(f"{name}={weight}" for _, weight, name in adapters),
            recipe=recipe,
            shapes=cell.shapes,
            is_verified=cell.is_verified,
            with_bundle=cell.with_bundle,
            inputs=inputs,
            source=source,
            graph=cache.digest({**shared, "base": asdict(job.base), "shapes": asdict(job.shapes)}),
        )
        return task, found

    def _look(self, cell: Cell) -> tuple[Prospect, Settled]:
        asked = (cell.target, cell.revision, cell.family, cell.card)
        if asked not in self._found:
            try:
                found = sources.look(
                    cell.target, revision=cell.revision, card=cell.card, progress=self._progress
                )
                self._found[asked] = found, sources.settle(found, family=cell.family)
            except EdgezooError as e:  # for every cell of the model, asked once
                self._found[asked] = e
        known = self._found[asked]
        if isinstance(known, EdgezooError):
            raise known
        return known

    def _context_length(self, settled: Settled) -> int:
        name = settled.model.source
        if name not in self._contexts:
            self._contexts[name] = sources.context_length(settled, self._progress)
        return self._contexts[name]

    def _content(self, folder: Path) -> Mapping[str, str]:
        if folder not in self._contents:
            self._progress(f"hashing {folder}")
            self._contents[folder] = content(folder)
        return self._contents[folder]


def content(folder: Path) -> dict[str, str]:
    """Returns the sha256 of the files that a conversion reads in a folder: model, or adapter."""
    weights = [folder / name for name in repo_files.ADAPTER_WEIGHTS if (folder / name).is_file()]
    if weights:
        files = [folder / repo_files.ADAPTER_CONFIG, weights[0]]
        return {path.name: checkpoint.sha256(path) for path in files}
    return {file.name: file.sha256 for file in checkpoint.open_folder(folder).hash_files()}
