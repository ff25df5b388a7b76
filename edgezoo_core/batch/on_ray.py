"""The engine of a Ray cluster: its scheduler, its memory accounting, its retries."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, chdir, redirect_stdout, suppress
from typing import Any

from edgezoo_core import errors, plugins
from edgezoo_core.batch import making
from edgezoo_core.batch.forecast import Planned
from edgezoo_core.compiler.versions import identity
from edgezoo_core.errors import BatchError, EdgezooError, listing
from edgezoo_core.types import Progress, silent

logger = logging.getLogger(__name__)

#: How often Ray begins a task again whose node died.
RETRIES = 5
#: Seconds that a node may take to start a process and say its versions.
_PROBE_S = 300.0


class _Talk(io.TextIOBase):
    """What Ray prints, on its way to the log."""

    def write(self, text: str) -> int:
        """Logs what is more than the end of a line."""
        if text.strip():
            logger.info("ray: %s", text.strip())
        return len(text)


class OnRay:
    """Runs tasks on the nodes of a cluster, which share no disk.

    Args:
        address: As `ray.init` takes it; `local` starts a cluster on this machine alone.
        left: What will be submitted: nodes must have room for it, and its versions.
        jobs: CPUs that a task is given.
        progress: Told of each stage.

    Raises:
        BatchError: Ray is not installed, the cluster cannot be reached, its nodes have other
            versions, or none of them has room for a task.
    """

    is_shared_disk = False

    def __init__(
        self, address: str, left: Sequence[Planned], jobs: int, progress: Progress = silent
    ) -> None:
        # Read when ray is imported, and by what it starts.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ModuleNotFoundError as e:
            raise BatchError(
                "ray is not installed", remedy="run: pip install 'edgezoo-core[ray]'"
            ) from e
        progress(f"connecting to Ray at {address}")
        self._ray = ray
        self._jobs = jobs
        self._begun: list[Any] = []
        # Ray prints to stdout what happens to its nodes.
        self._quiet = ExitStack()
        self._quiet.enter_context(redirect_stdout(_Talk()))
        alone: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            # Ray's workers import from the folder where its driver happens to be, before all else.
            with chdir("/"):
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **alone)
        except Exception as e:
            self._quiet.close()
            raise BatchError(
                f"no Ray cluster answers at {address}: {e}",
                remedy="name the address that `ray start --head` says, or `local`",
            ) from e
        try:
            list_nodes: Any = ray.nodes
            nodes = [n for n in list_nodes() if n["Alive"] and n["Resources"].get("CPU")]
            self._refuse_large(left, nodes)
            progress("comparing versions")
            self._refuse_other_versions(left, nodes)
        except BaseException:
            self.close()
            raise
        self._carry_out = ray.remote(max_retries=RETRIES, retry_exceptions=False)(_carry_out)

    def submit(
        self, stage: str, planned: Planned, request: Mapping[str, Any]
    ) -> Future[dict[str, Any]]:
        """Begins a stage of `making` as soon as a node has room."""
        task = self._carry_out.options(
            name=f"{stage} {planned.task.name}",
            num_cpus=self._jobs,
            memory=planned.forecast.peak_memory_bytes,
        )
        reference = task.remote(stage, dict(request))
        self._begun.append(reference)
        told: Future[dict[str, Any]] = Future()
        name = planned.task.name
        reference.future().add_done_callback(lambda ended: _settle(told, ended, name))
        return told

    def close(self) -> None:
        """Ends what runs, and leaves the cluster."""
        for reference in self._begun:
            with suppress(Exception):
                self._ray.cancel(reference, force=True)
        self._ray.shutdown()
        self._quiet.close()

    def _refuse_large(self, left: Sequence[Planned], nodes: Sequence[Mapping[str, Any]]) -> None:
        # Ray would wait for ever for a node that has room.
        for planned in left:
            peak = planned.forecast.peak_memory_bytes
            if not any(
                n["Resources"].get("memory", 0) >= peak and n["Resources"]["CPU"] >= self._jobs
                for n in nodes
            ):
                raise BatchError(
                    f"{planned.task.name} takes {peak / 1e9:.1f} GB and {self._jobs} CPUs, and no"
                    f" node of the cluster ({len(nodes)}) has both",
                    remedy="pass a smaller --jobs, or add a larger node",
                )

    def _refuse_other_versions(
        self, left: Sequence[Planned], nodes: Sequence[Mapping[str, Any]]
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        probe = self._ray.remote(num_cpus=0)(_versions)
        asked = {
            f"{n['NodeManagerHostname']} ({n['NodeID'][:8]})": probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)
            ).remote()
            for n in nodes
        }
        expected = {p.task.inputs["model"]["family"]: p.task.inputs["versions"] for p in left}
        for name, reference in asked.items():
            try:
                found = self._ray.get(reference, timeout=_PROBE_S)
            except Exception as e:
                raise BatchError(
                    f"node {name} cannot run edgezoo: {type(e).__name__}: {e}",
                    remedy="install edgezoo-core[ray] and the plugins there, as here",
                ) from e
            unlike = [
                place
                for family, versions in expected.items()
                for place in _differences(versions, found.get(family, {}))
            ]
            if unlike:
                raise BatchError(
                    f"node {name} differs in {listing(dict.fromkeys(unlike))}",
                    remedy="install the same versions on all machines",
                )


def _differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Returns what differs, in words: `torch 2.13.0 (here 2.13.1)`."""
    found = []
    for name, version in here["libraries"].items():
        other = there.get("libraries", {}).get(name, "absent")
        if other != version:
            found.append(f"{name} {other} (here {version})")
    for part in ("core", "plugin"):
        one, two = here[part], there.get(part)
        name = "edgezoo-core" if part == "core" else one["distribution"]
        if two is None:
            found.append(f"{name} (absent there)")
        elif one["version"] != two["version"]:
            found.append(f"{name} {two['version']} (here {one['version']})")
        elif one != two:
            found.append(f"the files of {name} {one['version']}, or what it requires")
    return found


def _versions() -> dict[str, Any]:
    """Runs on a node: identities by family."""
    return {p.family: identity(p) for p in plugins.discover() if p.is_usable}


def _carry_out(stage: str, request: dict[str, Any]) -> dict[str, Any]:
    """Runs on a node: an error of edgezoo's is an answer, which Ray does not try again."""
    import ray

    if stage == "make":
        request = {**request, "where": ray.get_runtime_context().get_node_id()}
    try:
        return {"answer": making.run(stage, request)}
    except EdgezooError as e:
        return {"error": {"kind": type(e).__name__, "message": e.message, "remedy": e.remedy}}


def _settle(told: Future[dict[str, Any]], ended: Future[Any], name: str) -> None:
    try:
        answer = ended.result()
    except BaseException as e:  # of Ray, which may also cancel
        told.set_exception(
            BatchError(
                f"{name}: Ray gave it up: {type(e).__name__}: {e}",
                remedy="look at the cluster (`ray status`), and run the command again",
            )
        )
        return
    if error := answer.get("error"):
        kind = getattr(errors, error["kind"], BatchError)
        told.set_exception(kind(error["message"], remedy=error["remedy"]))
    else:
        told.set_result(answer["answer"])
