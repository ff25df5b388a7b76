"""evaluate: the benchmarks of lm-evaluation-harness on a converted file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgezoo_core.cli.console import working
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.errors import EdgezooError


@click.command("evaluate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--tasks",
    metavar="NAME[,NAME...]",
    required=True,
    help="Tasks of lm-evaluation-harness; `*` stands for any part of a name.",
)
@click.option(
    "--include-path",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A folder with task files of your own.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Take so many documents of each task.")
@click.option("--fewshot", type=click.IntRange(min=0), help="Examples before each question.")
@click.option("--chat", is_flag=True, help="Apply the chat template.")
@click.option("--tokenizer", metavar="PATH|REPO", help="A folder or hub repo; default: the source.")
@json_option
@verbose_option
def evaluate_command(
    file: Path,
    tasks: str,
    include_path: Path | None,
    limit: int | None,
    fewshot: int | None,
    chat: bool,
    tokenizer: str | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Score FILE, a converted .tflite, on tasks of lm-evaluation-harness.

    Needs pip install 'edgezoo-core[evaluate]'.
    """
    with working(verbose=verbose) as stages:
        stages("importing lm_eval")
        try:
            from edgezoo_core import evaluation
            from edgezoo_core.evaluation.model import EdgezooLM
        except ModuleNotFoundError as e:
            if e.name is None or e.name.partition(".")[0].startswith("edgezoo"):
                raise
            raise EdgezooError(
                f"lm-evaluation-harness cannot be imported: no module {e.name}",
                remedy="run: pip install 'edgezoo-core[evaluate]'",
            ) from e
        stages("loading the model")
        model = EdgezooLM(file, tokenizer, progress=stages)
        stages("looking for the tasks")
        chosen = evaluation.find_tasks([name for name in tasks.split(",") if name], include_path)
        stages.done()  # lm_eval has progress bars of its own
        with model.session:
            result = evaluation.summary(
                evaluation.evaluate(model, chosen, limit=limit, num_fewshot=fewshot, chat=chat)
            )
    if as_json:
        print_json(result)
    else:
        click.echo(table(evaluate_rows(result), ("TASK", "METRIC", "VALUE", "STDERR", "DOCUMENTS")))


def evaluate_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns task, metric, value, its standard error and number of documents.

    lm_eval names a value `metric,filter` and its error `metric_stderr,filter`.
    """
    rows: list[tuple[str, ...]] = []
    for task, values in result["results"].items():
        count = result["n-samples"].get(task, {}).get("effective", "")
        for key, value in values.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{name}")
            shown = metric if name == "none" else f"{metric} ({name})"
            rows.append((task, shown, _number(value), _number(error), str(count)))
    return rows


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else ""
