"""What `bench` measures, in which order, and what it makes of the samples. Nothing is timed."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from litert_lm_builder import litertlm_builder
from litert_lm_builder.runtime.proto import llm_metadata_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edgezoo_core import benchmark, bundle, drawing, measuring, zoo
from edgezoo_core.benchmark import chart
from edgezoo_core.benchmark import plan as plans
from edgezoo_core.benchmark.figures import Spread, ratio, report, spread
from edgezoo_core.benchmark.plan import Plan, Point, Subject, Trial
from edgezoo_core.cli import main
from edgezoo_core.errors import ArtifactError
from edgezoo_core.measuring import bundles, interpreter
from edgezoo_core.shapes import Shapes

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def converted(save_model, tmp_path_factory):
    """A small random model with a KV cache of 160."""
    saved = save_model("tinyllama", vocab_size=400)
    folder = tmp_path_factory.mktemp("converted")
    shapes = Shapes((4, 16), 160, "transposed", True)
    return zoo.convert(
        str(saved.folder), recipe="none", shapes=shapes, output=folder, with_bundle=False
    ).artifact


@pytest.fixture(scope="module")
def pack(converted, tmp_path_factory):
    """Bundles it with a tokenizer of single bytes: `pack(chat_template)`."""
    made = {}

    def build(template=None):
        if template not in made:
            texts = tmp_path_factory.mktemp("texts")
            tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
            tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            fast = PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
            )
            fast.chat_template = template
            fast.save_pretrained(texts)
            made[template] = bundle.build(converted, texts, texts / "model.litertlm").path
        return made[template]

    return build


@pytest.fixture(scope="module")
def bundled(pack):
    """A bundle without chat template."""
    return pack()


def bench(*arguments, code=0):
    done = CliRunner().invoke(main, ["bench", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def plan_of(files, points, runs, threads=(2,)):
    subjects = tuple(Subject(file, "interpreter", 160) for file in files)
    return Plan(subjects, threads, points, 8, runs)


def answer(load, *readings, private=7):
    """What a worker gives: seconds to load, and (prefill, decode) of each point."""
    memory = {"resident": 10, "private": private}
    points = [
        {"prefill_per_s": p, "decode_per_s": d, "first_token_s": 1 / d, "memory": memory}
        for p, d in readings
    ]
    return {"load_s": load, "before": memory, "peak": memory, "points": points}


def test_spread_is_median_and_extremes():
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, (3.0, 1.0, 2.0))
    assert spread([4.0, 1.0]).median == 2.5


def test_ratios_are_taken_pair_by_pair():
    # The machine halves its speed after the first pair: the ratio does not see it.
    assert ratio(spread([20.0, 10.0, 12.0]), spread([10.0, 5.0, 4.0])) == Spread(
        2.0, 2.0, 3.0, (2.0, 2.0, 3.0)
    )


def test_files_take_turns_after_one_round_that_does_not_count(tmp_path):
    asked = plan_of((tmp_path / "a", tmp_path / "b"), (Point(0, 4),), 2, threads=(1, 4))
    order = list(plans.trials(asked))
    assert order[:2] == [Trial(0, 1, 0), Trial(0, 1, 1)]
    assert [t.subject for t in order] == [0, 1] * 5
    assert [(t.run, t.threads) for t in order[2::2]] == [(1, 1), (1, 4), (2, 1), (2, 4)]


def test_report_of_given_answers(tmp_path):
    asked = plan_of((tmp_path / "a", tmp_path / "b"), (Point(0, 4), Point(8, 4)), 3)
    for subject in asked.subjects:
        subject.path.write_bytes(b"12345")
    answers = {Trial(0, 2, 0): answer(9.0, (1, 1)), Trial(0, 2, 1): answer(8.0, (1, 1))}
    for run, speed in ((1, 10.0), (2, 30.0), (3, 20.0)):
        answers[Trial(run, 2, 0)] = answer(run, (speed, 2 * speed), (speed / 2, speed))
        answers[Trial(run, 2, 1)] = answer(run, (speed / 4, speed), (speed, speed), private=None)
    found = report(asked, answers)
    assert found.first_loads_s == (9.0, 8.0)
    assert [cost.load_s.median for cost in found.costs] == [2, 2]
    assert [cost.private_bytes is None for cost in found.costs] == [False, True]
    first = found.lines[0]
    assert (first.subject, first.point) == (0, Point(0, 4))
    assert first.prefill_per_s == Spread(20.0, 10.0, 30.0, (10.0, 30.0, 20.0))
    assert first.decode_per_s.samples == (20.0, 60.0, 40.0)
    assert [(r.point.depth, r.prefill.median, r.decode.median) for r in found.ratios] == [
        (0, 4.0, 2.0),
        (8, 0.5, 1.0),
    ]
    assert json.loads(json.dumps(found.to_json()))["files"][0]["size_bytes"] == 5
    alone = report(replace(asked, subjects=asked.subjects[:1]), answers)
    assert alone.ratios == ()
    assert alone.costs == found.costs[:1]


def test_json_of_a_file_with_itself(converted):
    done = bench(
        *(converted.path, "--against", converted.path, "--prefill", 4, "--prefill", 20),
        *("--depth", 0, "--depth", 30, "--decode", 3, "--runs", 2, "--threads", 1, "--json"),
    )
    told = json.loads(done.stdout)
    keys = {"files", "decode_tokens", "runs", "costs", "points", "ratios", "machine"}
    assert set(told) == keys
    assert [f["engine"] for f in told["files"]] == ["interpreter"] * 2
    assert told["files"][0]["first_load_s"] > 0
    points = [(0, 4), (0, 20), (30, 4), (30, 20)]
    assert [(p["subject"], p["point"]["depth"], p["point"]["prefill"]) for p in told["points"]] == [
        (subject, *point) for subject in (0, 1) for point in points
    ]
    for point in told["points"]:
        for name in ("prefill_per_s", "decode_per_s", "first_token_s", "resident_bytes"):
            found = point[name]
            assert len(found["samples"]) == 2
            assert 0 < found["low"] <= found["median"] <= found["high"]
    for cost in told["costs"]:
        assert cost["resident_bytes"]["low"] > cost["before_bytes"]["high"]
        assert cost["resident_bytes"]["low"] > converted.path.stat().st_size
    assert len(told["ratios"]) == len(points)
    assert told["ratios"][0]["decode"]["low"] > 0


def test_tables(converted):
    done = bench(converted.path, "--prefill", 16, "--decode", 2, "--runs", 1)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == f"A {converted.path}"
    assert any(re.fullmatch(r"A \d+ 0 16 [\d.]+ \(.*\) [\d.]+ \(.*\) [\d.]+ \(.*\)", line)
               for line in lines)  # fmt: skip
    assert not any("A/B" in line for line in lines)


@pytest.mark.parametrize("first", [measuring.Memory(5, None), measuring.Memory(5, 3)])
def test_memory_watch_keeps_the_most(first, monkeypatch):
    seen = iter([first, measuring.Memory(4, first.private)])
    monkeypatch.setattr(measuring, "now", lambda: next(seen))
    monkeypatch.setattr(measuring, "_INTERVAL_S", 60)
    watch = measuring.MemoryWatch.__new__(measuring.MemoryWatch)
    with watch.watching():
        pass
    assert watch.peak == first


def test_measured_tokens_are_those_that_were_asked_for(converted, monkeypatch):
    from edgezoo_core.runtime import Session

    fed = []
    feed = Session.feed
    monkeypatch.setattr(
        Session, "feed", lambda s, t: (fed.append((s.position, len(t))), feed(s, t))[1]
    )
    points = [{"depth": 0, "prefill": 16}, {"depth": 9, "prefill": 4}]
    found = interpreter.measure(converted.path, 1, points, 3)
    assert len(found["points"]) == 2
    warm = [(0, 17), (17, 1), (18, 1)]
    assert fed == [*warm, *warm, (0, 9), (9, 5), (14, 1), (15, 1)]


def test_the_whole_cache_can_be_measured(converted):
    asked = plans.plan([converted.path], depth=[100], prefill=[50], decode=10)
    points = [{"depth": p.depth, "prefill": p.prefill} for p in asked.points]
    interpreter.measure(converted.path, 1, points, 10)
    with pytest.raises(ArtifactError, match="KV cache of 160; 100 tokens in it, 51 of the prompt"):
        plans.plan([converted.path], depth=[100], prefill=[51], decode=10)


def test_points_of_a_chart_cover_the_cache(converted, bundled):
    asked = plans.plan([converted.path], prefill=[16], depth=None, decode=10)
    assert [p.depth + p.prefill for p in asked.points] == [16, 49, 83, 116, 150]
    assert {p.prefill for p in asked.points} == {16}
    # LiteRT-LM's benchmark begins empty.
    both = plans.plan([converted.path, bundled], prefill=[16], depth=None, decode=10)
    assert {p.depth for p in both.points} == {0}
    assert [p.prefill for p in both.points] == [16, 49, 83, 116, 150]
    with pytest.raises(ArtifactError, match="KV cache of 160"):
        plans.plan([converted.path], prefill=[200], depth=None, decode=10)


def test_litert_lm_measures_a_bundle(bundled, tmp_path):
    path = shutil.copy(bundled, tmp_path / "x.litertlm")
    done = bench(path, "--prefill", 20, "--decode", 4, "--runs", 1, "--threads", 1, "--json")
    told = json.loads(done.stdout)
    assert told["files"][0]["engine"] == "litert-lm"
    assert told["points"][0]["decode_per_s"]["low"] > 0
    assert told["costs"][0]["load_s"]["low"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["x.litertlm"]  # no cache is left beside it


@pytest.mark.parametrize(("template", "copies"), [(None, 1), (CHATML, 2)])
def test_longest_prompt_of_litert_lm_is_the_one_that_fits(template, copies, pack, tmp_path):
    path = pack(template)
    longest = 150 // copies
    (subject,) = plans.plan([path], prefill=[longest], decode=10).subjects
    assert subject.context(Point(0, longest)) == 150
    point = {"depth": 0, "prefill": longest}
    bundles.measure(path, 1, [point], 10, tmp_path)
    with pytest.raises(ArtifactError, match=f"KV cache of 160.* need {160 + copies}"):
        plans.plan([path], prefill=[longest + 1], decode=10)
    # What does not fit is cut off without an error by LiteRT-LM itself.
    with pytest.raises(ArtifactError, match="answered 10 of 11"):
        bundles.measure(path, 1, [point], 11, tmp_path)


def test_a_bundle_that_cannot_be_loaded_is_told(tmp_path):
    message = llm_metadata_pb2.LlmMetadata(max_num_tokens=600)
    (tmp_path / "llm.pb").write_bytes(message.SerializeToString())
    builder = litertlm_builder.LitertLmFileBuilder()
    builder.add_system_metadata(
        litertlm_builder.Metadata("author", "x", litertlm_builder.DType.STRING)
    )
    builder.add_llm_metadata(str(tmp_path / "llm.pb"))
    path = tmp_path / "empty.litertlm"
    with path.open("wb") as file:
        builder.build(file)
    done = bench(path, "--runs", 1, code=1)
    assert "LiteRT-LM cannot load" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_does_not_fit_together_is_told(converted, bundled, tmp_path, monkeypatch):
    (tmp_path / "text.tflite").write_text("Hello, world")
    for arguments, words in (
        ((tmp_path / "missing.tflite",), "no such file"),
        ((tmp_path / "text.tflite",), "no .tflite"),
        ((bundled, "--depth", 5), "begins with an empty cache"),
        ((bundled, "--engine", "interpreter"), "is a bundle"),
        ((converted.path, "--engine", "litert-lm"), "is no bundle"),
        ((converted.path, "--prefill", 150), "smaller --depth, --prefill or --decode"),
        ((converted.path, "--against", tmp_path / "missing.tflite"), "no such file"),
    ):
        done = bench(*arguments, code=1)
        assert words in done.stderr
        assert "Fix:" in done.stderr
        assert done.stdout == ""
    for option in ("--prefill", "--decode", "--threads", "--runs"):
        bench(converted.path, option, 0, code=2)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "litert_lm" else find_spec(n, *a)
    )
    assert "pip install litert-lm" in bench(bundled, code=1).stderr


def test_a_failing_worker_ends_the_benchmark(converted, monkeypatch):
    asked = plans.plan([converted.path], prefill=[4], decode=2, runs=1)
    broken = replace(asked, points=(Point(150, 40),))
    with pytest.raises(ArtifactError, match="do not fit into a KV cache of 160"):
        benchmark.run(broken)


def test_plot_asks_for_matplotlib_before_anything_is_measured(converted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(benchmark, "run", lambda *_: pytest.fail("measured"))
    done = bench(converted.path, "--plot", tmp_path / "x.png", code=1)
    assert "pip install matplotlib" in done.stderr


def test_plot_is_a_png_with_a_line_for_each_file_and_number_of_threads(converted, tmp_path):
    twin = shutil.copy(converted.path, tmp_path / "$twin_1.tflite")
    asked = plan_of((converted.path, twin), (Point(0, 4), Point(8, 4)), 1, threads=(1, 2))
    answers = {t: answer(1.0, (4.0, 5.0), (3.0, 2.0)) for t in plans.trials(asked)}
    found = report(asked, answers)
    assert list(chart._series(found)) == [
        f"{name}, threads: {n}"
        for n in (1, 2)
        for name in (f"A: {converted.path.name}", "B: $twin_1.tflite")
    ]
    path = tmp_path / "x.png"
    chart.draw(found, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for wrong, words in (("x.svg", "no .png"), ("none/x.png", "no folder")):
        with pytest.raises(ArtifactError, match=words):
            drawing.check(tmp_path / wrong)
