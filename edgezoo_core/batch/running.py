"""The order in which a matrix is made: what shares a download or a trace waits for the first."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from edgezoo_core.batch import forecast
from edgezoo_core.batch.forecast import Circumstances, Planned
from edgezoo_core.batch.store import Store
from edgezoo_core.batch.tasks import Matrix
from edgezoo_core.errors import BatchError, EdgezooError
from edgezoo_core.types import Progress, silent

State = Literal["made", "already there", "failed", "not done"]

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What runs tasks.

    Attributes:
        is_shared_disk: Whether a download serves all tasks.
    """

    is_shared_disk: bool

    def submit(
        self, stage: str, planned: Planned, request: Mapping[str, Any]
    ) -> Future[dict[str, Any]]:
        """Begins a stage of `making`, in a process of its own, as soon as there is room for it."""

    def close(self) -> None:
        """Ends what runs; returns when it is gone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task.

    Attributes:
        name: The task's; of a cell that could not be planned, what ZOO.toml says.
        state: Of what there is in the store now.
        record: As it stands in the store, None if nothing does.
        error: What was in the way, None if nothing was.
    """

    name: str
    state: State
    record: Mapping[str, Any] | None = None
    error: EdgezooError | None = None

    @property
    def passes(self) -> bool:
        """Whether the artifact is there, and was not found to be another model."""
        if self.record is None:
            return False
        verification = self.record["verification"]
        return verification is None or bool(verification["passes"])


@dataclass(slots=True)
class _Step:
    """A download or a task, and what waits for it."""

    stage: str
    planned: Planned
    following: list[_Step] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """A matrix on its way.

    Attributes:
        matrix: What is wanted.
        store: Where it goes.
        jobs: Workers that trace side by side in one task.
        left: What `look` did not find and `plan` did not refuse.
        outcomes: By name of task; those that are missing were not begun.
        is_interrupted: Whether Ctrl-C ended it early.
    """

    matrix: Matrix
    store: Store
    jobs: int
    left: list[Planned] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    is_interrupted: bool = False

    def look(self, progress: Progress = silent) -> None:
        """Finds what is in the store already.

        Raises:
            BatchError: The store cannot be read.
        """
        progress(f"looking into {self.store.url}")
        for task in self.matrix.tasks:
            if record := self.store.find(task):
                self.outcomes[task.name] = Outcome(task.name, "already there", record)

    def plan(self, where: Circumstances, progress: Progress = silent) -> None:
        """Predicts what the rest takes; what cannot succeed has failed."""
        for task in self.matrix.tasks:
            if task.name not in self.outcomes:
                prospect = self.matrix.prospects[task.name]
                try:
                    self.left.append(forecast.forecast(task, prospect, where, progress))
                except EdgezooError as e:
                    self._note(Outcome(task.name, "failed", error=e))

    def make(self, engine: Engine, progress: Progress = silent) -> None:
        """Makes what is left. A task that fails stops no other; Ctrl-C ends what runs.

        Args:
            engine: What runs tasks; closed at the end.
            progress: Told of each end.
        """
        try:
            with contextlib.closing(engine):
                self._follow(engine, progress)
        except KeyboardInterrupt:
            self.is_interrupted = True

    def all(self) -> list[Outcome]:
        """Returns an outcome for each task, in the order of the matrix."""
        names = [task.name for task in self.matrix.tasks]
        return [
            *(self.outcomes.get(name) or Outcome(name, "not done") for name in names),
            *(Outcome(str(r.cell), "failed", error=r.error) for r in self.matrix.refused),
        ]

    def _follow(self, engine: Engine, progress: Progress) -> None:
        running: dict[Future[dict[str, Any]], _Step] = {}

        def begin(step: _Step) -> None:
            request: dict[str, Any] = {"task": step.planned.task.to_json()}
            if step.stage == "make":
                request |= {"store": self.store.url, "jobs": self.jobs}
            running[engine.submit(step.stage, step.planned, request)] = step

        for step in _steps(self.left, with_fetch=engine.is_shared_disk):
            begin(step)
        while running:
            progress(f"{len(self.outcomes)} of {len(self.matrix.tasks)} cells done")
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                step = running.pop(future)
                if self._take(step, future):
                    for following in step.following:
                        begin(following)

    def _take(self, step: _Step, future: Future[dict[str, Any]]) -> bool:
        """Notes how a step ended; says whether what waits for it may begin."""
        try:
            answer = future.result()
        except EdgezooError as e:
            # Without its files none of a model's tasks can be made.
            concerned = _concerned(step) if step.stage == "fetch" else [step]
            for one in concerned:
                self._note(Outcome(one.planned.task.name, "failed", error=e))
            return step.stage != "fetch"
        if step.stage == "make":
            self._note(self._checked(step.planned, answer))
        return True

    def _checked(self, planned: Planned, answer: Mapping[str, Any]) -> Outcome:
        name = planned.task.name
        # A node's own disk is not this one, though it may have the same path.
        if not self.store.has_files(answer["record"]):
            error = BatchError(
                f"{name} was made on {answer['record']['made']['host']}, but it is not in"
                f" {self.store.url}",
                remedy="name a store that all nodes see, s3://… say",
            )
            return Outcome(name, "failed", error=error)
        return Outcome(name, "made" if answer["is_new"] else "already there", answer["record"])

    def _note(self, outcome: Outcome) -> None:
        self.outcomes[outcome.name] = outcome
        told = f": {outcome.error.message}" if outcome.error else ""
        level = logging.WARNING if outcome.error else logging.INFO
        logger.log(level, "%s: %s%s", outcome.name, outcome.state, told)


def _steps(left: Iterable[Planned], *, with_fetch: bool) -> list[_Step]:
    """Puts first things first: a download, one task for each trace, the tasks that use it too."""
    fetches: dict[str, _Step] = {}
    first: dict[tuple[str, str], _Step] = {}
    begun: list[_Step] = []
    for planned in left:
        step = _Step("make", planned)
        leader = first.setdefault((planned.task.source, planned.task.graph), step)
        if leader is not step:
            leader.following.append(step)
        elif with_fetch:
            source = planned.task.source
            if source not in fetches:
                fetches[source] = _Step("fetch", planned)
                begun.append(fetches[source])
            fetches[source].following.append(step)
        else:
            begun.append(step)
    return begun


def _concerned(fetch: _Step) -> list[_Step]:
    return [step for leader in fetch.following for step in (leader, *leader.following)]
