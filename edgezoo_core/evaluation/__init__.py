"""A converted file on the benchmarks of the field: lm-evaluation-harness scores what ships.

lm_eval finds models of its own alone, so the command `lm_eval` learns of this one when it is called
through this module:

    python -m edgezoo_core.evaluation run --model edgezoo --model_args path=FILE --tasks TASK
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from edgezoo_core.errors import EvaluationError, listing, nearest
from edgezoo_core.evaluation.model import EdgezooLM


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tasks to evaluate.

    Attributes:
        names: Of tasks, groups or tags.
        manager: lm_eval's own index, which loads them.
    """

    names: list[str]
    manager: TaskManager


def find_tasks(wanted: Sequence[str], include_path: Path | None = None) -> Tasks:
    """Looks tasks up; that takes some seconds, since lm_eval reads the thousands that it has.

    Args:
        wanted: Names of tasks, groups or tags; `*` stands for any part of a name.
        include_path: A folder with task files of the user's own.

    Raises:
        EvaluationError: There is no such folder or task.
    """
    if include_path and not include_path.is_dir():
        raise EvaluationError(f"{include_path}: no such folder", remedy="check --include-path")
    manager = TaskManager(include_path=[str(include_path)] if include_path else None)
    names: dict[str, None] = {}
    for name in wanted:
        matching = manager.match_tasks([name])
        if not matching:
            guess = nearest(name, manager.all_tasks)
            raise EvaluationError(
                f"no task is called {name!r}",
                remedy=f"did you mean {guess}?"
                if guess
                else "see `lm_eval ls tasks`; pass --include-path DIR for tasks of your own",
            )
        names |= dict.fromkeys(matching)
    return Tasks(list(names), manager)


def evaluate(
    model: EdgezooLM,
    tasks: Tasks,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
) -> dict[str, Any]:
    """Lets lm_eval score an artifact.

    Args:
        model: The artifact.
        tasks: What it is scored on.
        limit: Documents that are taken of each task; all by default.
        num_fewshot: Examples before each question, in place of the tasks' own number.
        chat: Whether the chat template is applied.

    Returns:
        lm_eval's result, with `samples` of every request.

    Raises:
        EvaluationError: A task cannot be loaded, or asks for what the file cannot do.
    """
    if chat and not model.tokenizer.chat_template:
        raise EvaluationError("the tokenizer has no chat template", remedy="leave out --chat")
    try:
        result: dict[str, Any] = lm_eval.simple_evaluate(
            model,
            tasks=tasks.names,
            task_manager=tasks.manager,
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=chat,
        )
    except OSError as e:  # of a data set that is neither here nor to be had
        raise EvaluationError(
            f"the data of {listing(tasks.names)} cannot be had: {e}",
            remedy="check the connection and HF_HUB_OFFLINE, or write a task that reads a file"
            " and name its folder with --include-path",
        ) from e
    return result


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is worth keeping of a result, as JSON has it: no samples, no environment."""
    kept = ("results", "groups", "n-samples", "n-shot", "versions", "higher_is_better")
    told = {key: result[key] for key in kept if result.get(key)}
    told |= {"model": result["config"]["model_file"], "lm_eval": result["lm_eval_version"]}
    cleaned: dict[str, Any] = json.loads(json.dumps(told, default=handle_non_serializable))
    return cleaned
