"""lm-evaluation-harness on converted files: the scores are those of its own model `hf`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from command import edgezoo

os.environ["HF_DATASETS_OFFLINE"] = "1"  # before datasets is imported: nothing is downloaded

FOLDER = Path(__file__).with_name("tasks")
TASKS = ["edgezoo_questions", "edgezoo_answers", "edgezoo_texts"]
#: Fewer tokens than the longest text has, so that it is read in windows.
LENGTH = 64
#: Largest difference of a log-likelihood, per token: what float32 rounds in 30 layers.
TOLERANCE = 1e-5
STORY = "The quick brown fox jumps over the lazy dog and runs into the dark green wood. " * 8

pytestmark = pytest.mark.filterwarnings("default")  # lm_eval and datasets warn at import


@pytest.fixture(scope="module")
def convert(smollm2, tmp_path_factory):
    """Converts SmolLM2: `convert(recipe)`."""
    folder = tmp_path_factory.mktemp("evaluate")

    def run(recipe):
        done = edgezoo(
            *("convert", smollm2, "--recipe", recipe, "--prefill", 32, "--kv-cache", 256),
            *("--output", folder, "--no-bundle", "--json"),
        )
        return Path(json.loads(done.stdout)["path"])

    return run


@pytest.fixture(scope="module")
def float32(convert):
    return convert("none")


@pytest.fixture(scope="module")
def int8(convert):
    return convert("dynamic_int8")


@pytest.fixture(scope="module")
def reference(smollm2):
    """lm_eval's own model, float32."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        str(smollm2),
        dtype="float32",
        device="cpu",
        max_length=LENGTH,
        batch_size=4,
        softmax_dtype="float64",
    )


@pytest.fixture(scope="module")
def exact(float32):
    """The float32 file."""
    from edgezoo_core.evaluation.model import EdgezooLM

    model = EdgezooLM(float32, max_length=LENGTH)
    with model.session:
        yield model


@pytest.fixture(scope="module")
def tasks():
    """The local tasks alone: lm_eval's own are thousands."""
    from lm_eval.tasks import TaskManager

    from edgezoo_core.evaluation import Tasks

    return Tasks(TASKS, TaskManager(include_path=[str(FOLDER)], include_defaults=False))


def evaluate(model, tasks, **options):
    """Returns lm_eval's scores, and its answers to each task's requests."""
    import lm_eval

    result = lm_eval.simple_evaluate(
        model, tasks=tasks.names, task_manager=tasks.manager, bootstrap_iters=0, **options
    )
    answers = {
        task: [answer for document in documents for (answer,) in document["resps"]]
        for task, documents in result["samples"].items()
    }
    return result["results"], answers


def requests(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]


def assert_same_scores(found, expected, tokens):
    for (score, is_greedy), (right, is_right_greedy), count in zip(
        found, expected, tokens, strict=True
    ):
        assert score == pytest.approx(right, abs=count * TOLERANCE)
        assert is_greedy == is_right_greedy


def test_float32_file_is_scored_as_transformers_is(exact, reference, tasks):
    scores, answers = evaluate(exact, tasks)
    right_scores, right = evaluate(reference, tasks)
    choices, right_choices = answers[TASKS[0]], right[TASKS[0]]
    worst = max(abs(a - b) for (a, _), (b, _) in zip(choices, right_choices, strict=True))
    print("choices", len(choices), "differ by", worst)
    assert len(choices) == 48
    assert_same_scores(choices, right_choices, [50] * 48)
    assert scores[TASKS[0]]["acc,none"] == right_scores[TASKS[0]]["acc,none"]
    assert scores[TASKS[0]]["acc_norm,none"] == right_scores[TASKS[0]]["acc_norm,none"]
    assert answers[TASKS[1]] == right[TASKS[1]]
    print("texts", answers[TASKS[2]], right[TASKS[2]])
    for score, expected in zip(answers[TASKS[2]], right[TASKS[2]], strict=True):
        assert score == pytest.approx(expected, rel=TOLERANCE)


def test_what_is_too_long_is_cut_from_the_left_and_told(exact, reference, caplog):
    pairs = [(STORY, "The end."), (STORY, " " + STORY[:80]), ("", "Once upon a time")]
    found = exact.loglikelihood(requests("loglikelihood", *pairs))
    assert "2 of 3 requests are longer than the 64 slots" in caplog.text
    expected = reference.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    print(found, expected)
    assert_same_scores(found, expected, [LENGTH] * 3)
    options = {"until": ["."], "max_gen_toks": 8}
    (answer,) = exact.generate_until(requests("generate_until", (STORY, options)))
    (right,) = reference.generate_until(requests("generate_until", (STORY, options)))
    assert answer == right


def test_greedy_is_said_of_what_the_model_would_write(exact):
    options = {"until": [], "max_gen_toks": 6}
    (answer,) = exact.generate_until(requests("generate_until", ("The capital of Italy", options)))
    pairs = [("The capital of Italy", answer), ("The capital of Italy", " is a fish")]
    (_, is_greedy), (_, is_other_greedy) = exact.loglikelihood(requests("loglikelihood", *pairs))
    assert is_greedy
    assert not is_other_greedy


def test_what_requests_share_is_read_once(exact, monkeypatch):
    fed = []
    feed = exact.session.feed
    monkeypatch.setattr(exact.session, "feed", lambda t: fed.append(len(t)) or feed(t))
    question = "Question: Which of these is a fruit?\nAnswer:"
    pairs = [(question, f" {word}") for word in ("apple", "chair", "stone", "river")]
    pairs += [(f"{question} apple\nQuestion: And a tool?\nAnswer:", " hammer")]
    together = exact.loglikelihood(requests("loglikelihood", *pairs))
    once = len(exact.tok_encode(pairs[4][0] + pairs[4][1])) - 1
    # One token of what two contexts share is read again, for its logits.
    assert once <= sum(fed) <= once + 2
    alone = []
    for pair in pairs:
        exact.session.reset()
        alone += exact.loglikelihood(requests("loglikelihood", pair))
    assert_same_scores(together, alone, [20] * 5)


def test_sampling_differs_by_request_and_repeats_with_the_run(exact):
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5}
    twice = requests("generate_until", *[("Once upon a time", options)] * 2)
    first, second = exact.generate_until(twice)
    assert first != second
    assert exact.generate_until(twice) == [first, second]


def test_options_that_are_not_obeyed_are_told(exact, caplog):
    options = {"until": [], "max_gen_toks": 1, "num_beams": 4, "top_p": 1.0}
    exact.generate_until(requests("generate_until", ("Hello", options)))
    assert "left out: num_beams=4" in caplog.text
    assert "top_p" not in caplog.text


def test_more_text_than_slots_is_an_error(exact):
    from edgezoo_core.errors import EvaluationError

    options = {"until": [], "max_gen_toks": LENGTH}
    with pytest.raises(EvaluationError, match="64 tokens are to be generated"):
        exact.generate_until(requests("generate_until", ("Hello", options)))
    with pytest.raises(EvaluationError, match="does not fit into 64 slots") as caught:
        exact.loglikelihood(requests("loglikelihood", ("Hello", STORY)))
    assert "--kv-cache" in caught.value.remedy


def test_chat_template_is_the_checkpoints(exact, reference, tasks):
    turns = [{"role": "user", "content": "Hello"}]
    assert exact.apply_chat_template(turns) == reference.apply_chat_template(turns)
    assert exact.chat_template(True) == reference.chat_template(True)
    begun = [*turns, {"role": "assistant", "content": "Well"}]
    assert exact.apply_chat_template(begun, False) == reference.apply_chat_template(begun, False)
    assert exact.tokenizer_name == reference.tokenizer_name
    two = replace(tasks, names=TASKS[:2])
    _, answers = evaluate(exact, two, limit=1, apply_chat_template=True)
    _, right = evaluate(reference, two, limit=1, apply_chat_template=True)
    assert_same_scores(answers[TASKS[0]], right[TASKS[0]], [LENGTH] * 4)
    assert answers[TASKS[1]] == right[TASKS[1]]


def test_command_scores_the_int8_file(int8):
    command = ("evaluate", int8, "--tasks", "edgezoo_que*", "--include-path", FOLDER, "--json")
    report = json.loads(edgezoo(*command).stdout)
    print(report)
    assert report["model"]["recipe"] == "dynamic_int8"
    assert report["model"]["file"] == int8.name
    assert report["n-samples"]["edgezoo_questions"]["effective"] == 12
    # The float32 file has 7 of 12.
    assert 6 / 12 <= report["results"]["edgezoo_questions"]["acc,none"] <= 8 / 12


def test_command_prints_a_row_for_each_metric():
    from edgezoo_core.cli.evaluate import evaluate_rows

    values = {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.25, "exact_match,strict": 1}
    report = {"results": {"a": values}, "n-samples": {"a": {"original": 9, "effective": 4}}}
    assert evaluate_rows(report) == [
        ("a", "acc", "0.5000", "0.2500", "4"),
        ("a", "exact_match (strict)", "1.0000", "", "4"),
    ]


def test_a_data_set_that_cannot_be_had_is_told(exact, tmp_path):
    from lm_eval.tasks import TaskManager

    from edgezoo_core.errors import EvaluationError
    from edgezoo_core.evaluation import Tasks, evaluate

    task = {"task": "absent", "dataset_path": "nobody/nothing", "output_type": "multiple_choice"}
    (tmp_path / "absent.yaml").write_text(json.dumps(task))
    manager = TaskManager(include_path=[str(tmp_path)], include_defaults=False)
    with pytest.raises(EvaluationError, match="the data of absent cannot be had") as caught:
        evaluate(exact, Tasks(["absent"], manager))
    assert "HF_HUB_OFFLINE" in caught.value.remedy


def test_tasks_are_found_by_pattern_or_told(monkeypatch):
    from edgezoo_core import evaluation

    local = partial(evaluation.TaskManager, include_defaults=False)
    monkeypatch.setattr(evaluation, "TaskManager", local)
    found = evaluation.find_tasks(["edgezoo_*", "edgezoo_texts"], FOLDER)
    assert found.names == sorted(TASKS)
    with pytest.raises(evaluation.EvaluationError, match="'edgezoo_answer'") as caught:
        evaluation.find_tasks(["edgezoo_answer"], FOLDER)
    assert caught.value.remedy == "did you mean edgezoo_answers?"
    with pytest.raises(evaluation.EvaluationError, match="no such folder"):
        evaluation.find_tasks(["edgezoo_answers"], FOLDER / "absent")


def test_a_bundle_is_refused(int8):
    from edgezoo_core.errors import ArtifactError
    from edgezoo_core.evaluation.model import EdgezooLM

    with pytest.raises(ArtifactError, match="is a bundle") as caught:
        EdgezooLM(int8.with_suffix(".litertlm"))
    assert caught.value.remedy == f"name {int8}"


def test_without_lm_eval_the_command_says_what_to_install(int8):
    script = "import sys; sys.modules['lm_eval'] = None; from edgezoo_core.cli import main; main()"
    failed = subprocess.run(
        [sys.executable, "-c", script, "evaluate", int8, "--tasks", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert "Fix: run: pip install 'edgezoo-core[evaluate]'" in failed.stderr


def test_lm_evals_own_command_learns_of_the_model(int8, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edgezoo_core.evaluation", "run", "--model", "edgezoo"),
            *("--model_args", f"path={int8},max_length={LENGTH}", "--limit", "1"),
            *("--tasks", "edgezoo_answers", "--include_path", FOLDER),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "|edgezoo_answers|" in done.stdout
