"""The command as a user meets it: stdout is data, stderr is talk, nothing is lost."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import BIN, ENVIRONMENT, edgezoo

from edgezoo_core.errors import tame

SHAPES = ("--prefill", "4", "--prefill", "16", "--kv-cache", "64")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small Llama with a tokenizer of single letters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("command") / "small"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=300,
            max_position_embeddings=128,
        )
    )
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(["</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(checkpoint):
    """What `convert --json` gave, both streams."""
    return edgezoo("convert", checkpoint, *SHAPES, "--output", checkpoint.parent, "--json")


def test_stdout_is_json_and_the_libraries_are_silent(converted):
    report = json.loads(converted.stdout)
    assert report["peak_memory_bytes"]["trace"] > 100e6
    assert sum(report["seconds"].values()) > 0
    for line in converted.stderr.splitlines():
        assert re.fullmatch(r" *\d+\.\d s  \w.*", line), line


def test_manifest_matches_the_file(converted, checkpoint):
    report = json.loads(converted.stdout)
    path = Path(report["path"])
    assert path.name == "small_dynamic_int8_ekv64.tflite"
    content = path.read_bytes()
    written = report["manifest"]["artifact"]
    assert written == {
        "file": path.name,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert report["manifest"] == json.loads(path.with_suffix(".manifest.json").read_text())
    for file in report["manifest"]["checkpoint"]["files"]:
        stored = (checkpoint / file["name"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(stored).hexdigest()
    decode = report["manifest"]["signatures"][-1]
    shapes = {t["name"]: (t["dtype"], t["shape"]) for t in decode["inputs"]}
    assert shapes == {
        # 67 stands for as many slots as an app asks for, up to 64.
        "input_pos": ("int32", [1]),
        "kv_cache_k_0": ("float32", [1, 2, 67, 16]),
        "kv_cache_k_1": ("float32", [1, 2, 67, 16]),
        "kv_cache_v_0": ("float32", [1, 2, 16, 67]),
        "kv_cache_v_1": ("float32", [1, 2, 16, 67]),
        "mask": ("float32", [1, 1, 1, 67]),
        "tokens": ("int32", [1, 1]),
    }
    assert {t["name"]: t["shape"] for t in decode["outputs"]}["logits"] == [1, 1, 300]


def test_bundle_is_made_where_there_is_a_tokenizer(converted):
    report = json.loads(converted.stdout)
    path = Path(report["bundle"])
    assert path == Path(report["path"]).with_suffix(".litertlm")
    recorded = report["manifest"]["bundle"]
    assert recorded["file"] == path.name
    assert recorded["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_source_without_tokenizer_gives_the_file_alone(checkpoint, tmp_path):
    bare = tmp_path / "small"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).hardlink_to(checkpoint / name)
    report = json.loads(
        edgezoo("convert", bare, *SHAPES, "--output", tmp_path / "out", "--json").stdout
    )
    assert report["bundle"] is None
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".json", ".tflite"]


def test_tokenizer_that_cannot_be_bundled_is_told_and_the_file_stays(checkpoint, tmp_path):
    broken = tmp_path / "small"
    shutil.copytree(checkpoint, broken)
    (broken / "tokenizer.json").write_text("{")
    output = tmp_path / "out" / "small.tflite"
    failed = edgezoo("convert", broken, *SHAPES, "--output", output, code=1)
    assert "is converted, but not bundled" in failed.stderr
    assert "Fix: pass --no-bundle" in failed.stderr
    assert sorted(p.name for p in output.parent.iterdir()) == [
        "small.manifest.json",
        "small.tflite",
    ]


def test_signatures_of_the_manifest_are_what_the_interpreter_sees(converted):
    from ai_edge_litert.interpreter import Interpreter

    report = json.loads(converted.stdout)
    interpreter = Interpreter(model_path=report["path"])
    seen = interpreter.get_signature_list()
    assert set(seen) == {s["name"] for s in report["manifest"]["signatures"]}
    for signature in report["manifest"]["signatures"]:
        runner = interpreter.get_signature_runner(signature["name"])
        for side, details in (
            ("inputs", runner.get_input_details()),
            ("outputs", runner.get_output_details()),
        ):
            told = {t["name"]: (t["dtype"], t["shape"]) for t in signature[side]}
            assert told == {
                name: (d["dtype"].__name__, d["shape"].tolist()) for name, d in details.items()
            }


def test_manifest_is_enough_to_make_the_same_again(converted, tmp_path):
    path = Path(json.loads(converted.stdout)["path"]).with_suffix(".manifest.json")
    alone = Path(shutil.copy(path, tmp_path))
    again = json.loads(edgezoo("reproduce", alone, "--json").stdout)
    assert again["same"] == {"artifact": True, "bundle": True, "manifest": True}
    assert again["versions"] == {}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_comes_out_otherwise_is_told(converted, tmp_path):
    path = Path(json.loads(converted.stdout)["path"]).with_suffix(".manifest.json")
    manifest = json.loads(path.read_text())
    manifest["artifact"]["sha256"] = "0" * 64
    manifest["versions"] |= {"torch": "1.0", "absent": "2.0"}
    other = tmp_path / path.name
    other.write_text(json.dumps(manifest))
    again = edgezoo("reproduce", other, code=3)
    assert re.search(r"artifact +DIFFERS", again.stdout)
    assert re.search(r"bundle +the same", again.stdout)
    told, worked = again.stderr.index("absent was 2.0"), again.stderr.index("hashing the checkp")
    assert told < worked  # before any work
    assert "torch was 1.0" in again.stderr


@pytest.mark.parametrize("engine", ["interpreter", "litert-lm"])
def test_run_streams_text(engine, converted):
    path = json.loads(converted.stdout)["path"]
    command = ("run", path, "--engine", engine, "--prompt", "hello", "--max-tokens", 12)
    answer = edgezoo(*command)
    assert answer.stdout.strip()
    report = json.loads(edgezoo(*command, "--json").stdout)
    assert report["engine"] == engine
    assert answer.stdout == tame(report["text"]) + "\n"
    # The head has 300 rows, the tokenizer knows 257 ids: none beyond is chosen.
    assert all(token < 257 for token in report["answer_tokens"] or ())


@pytest.mark.parametrize("engine", ["interpreter", "litert-lm"])
def test_sampling_repeats_with_its_seed(engine, converted):
    path = json.loads(converted.stdout)["path"]

    def sample(seed):
        out = edgezoo(
            *("run", path, "--engine", engine, "--prompt", "hello", "--max-tokens", 12, "--json"),
            *("--temperature", 1.5, "--top-k", 0, "--seed", seed),
        )
        return json.loads(out.stdout)["text"]

    assert sample(1) == sample(1) != sample(2)


def test_why_an_answer_was_cut_is_told(converted):
    path = json.loads(converted.stdout)["path"]
    command = ("run", path, "--engine", "interpreter", "--raw", "--prompt", "x" * 30)
    for limit, size, why in ((2, 2, "no more were asked for"), (99, 34, "the KV cache of 64 is")):
        done = edgezoo(*command, "--max-tokens", limit, "--json")
        answer = json.loads(done.stdout)
        assert len(answer["answer_tokens"]) == size
        assert answer["cut"].startswith(why)
        assert f"with interpreter: {why}" in done.stderr


@pytest.mark.parametrize(
    ("engine", "message", "remedy"),
    [
        ("interpreter", "70 tokens after 0 do not fit into a KV cache of 64", "shorten the prompt"),
        ("litert-lm", "LiteRT-LM refuses", "see `edgezoo check`"),
    ],
)
def test_prompt_longer_than_the_cache_is_told(engine, message, remedy, converted):
    path = json.loads(converted.stdout)["path"]
    failed = edgezoo("run", path, "--engine", engine, "--prompt", "x" * 70, code=1)
    assert message in failed.stderr
    assert f"Fix: {remedy}" in failed.stderr


def test_litert_lm_runs_what_has_a_bundle(converted, tmp_path):
    report = json.loads(converted.stdout)
    command = ("--prompt", "hello", "--max-tokens", 4, "--json")
    for path in (report["path"], report["bundle"]):
        assert json.loads(edgezoo("run", path, *command).stdout)["engine"] == "litert-lm"
    alone = Path(shutil.copy(report["path"], tmp_path))
    shutil.copy(Path(report["path"]).with_suffix(".manifest.json"), tmp_path)
    assert json.loads(edgezoo("run", alone, *command).stdout)["engine"] == "interpreter"
    failed = edgezoo("run", alone, "--engine", "litert-lm", *command, code=1)
    assert "has no bundle" in failed.stderr


def test_what_is_there_is_replaced_only_when_told(converted, checkpoint):
    path = Path(json.loads(converted.stdout)["path"])
    before = path.read_bytes()
    failed = edgezoo("convert", checkpoint, *SHAPES, "--output", checkpoint.parent, code=1)
    assert "Fix: pass --force" in failed.stderr
    assert path.read_bytes() == before


def test_interrupt_leaves_the_earlier_file_and_nothing_else(converted, checkpoint):
    path = Path(json.loads(converted.stdout)["path"])
    before = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    options = ["--no-cache", "--output", path.parent, "--force"]
    command = [BIN / "edgezoo", "convert", checkpoint, *SHAPES, *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    for line in process.stderr:
        if "importing the libraries" in line:  # the workers are at it
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert out == ""
    after = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (["convert", "gema-2b"], "no model is called 'gema-2b'", "did you mean gemma-2b?"),
        (["convert", "./absent"], "no such folder", "check the path"),
        (["convert", "gemma-2b", "--recipe", "int5"], "no recipe is called 'int5'", ""),
        (["run", "absent.tflite", "--prompt", "x"], "absent.tflite: no such file", "check"),
        (["info", "nothing"], "no model is called 'nothing'", "edgezoo list --available"),
    ],
)
def test_errors_are_told_with_their_remedy(arguments, message, remedy, tmp_path):
    failed = edgezoo(*arguments, cwd=tmp_path, code=1)
    assert failed.stdout == ""
    error, fix = failed.stderr.splitlines()[-2:]
    assert error.startswith("Error: ")
    assert message in error
    assert fix.startswith("Fix: ")
    assert remedy in fix


def test_usage_errors_have_exit_code_2():
    assert "No such command" in edgezoo("convrt", code=2).stderr


def test_no_tokenizer_and_no_manifest_is_told(converted, tmp_path):
    path = Path(json.loads(converted.stdout)["path"])
    alone = tmp_path / "alone.tflite"
    alone.write_bytes(path.read_bytes())
    failed = edgezoo("run", alone, "--prompt", "x", code=1)
    assert "has no manifest" in failed.stderr
    assert "Fix: pass --tokenizer" in failed.stderr


def test_not_a_tflite_is_told(tmp_path, checkpoint):
    file = tmp_path / "noise.tflite"
    file.write_bytes(b"noise" * 100)
    failed = edgezoo("run", file, "--prompt", "x", "--tokenizer", checkpoint, code=1)
    assert "noise.tflite is no .tflite file" in failed.stderr


CRASHING = [("run", "--prompt", "x", "--engine", "interpreter"), ("evaluate", "--tasks", "x")]


@pytest.mark.parametrize("command", CRASHING)
def test_a_crash_of_native_code_is_told(command, converted):
    script = """
import ctypes
from edgezoo_core import cli, runtime
runtime.Session = lambda *_: ctypes.string_at(0)
cli.main()
"""
    name, *options = command
    failed = subprocess.run(
        [sys.executable, "-c", script, name, json.loads(converted.stdout)["path"], *options],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert failed.returncode == 1
    assert failed.stdout == ""
    *_, error, fix = failed.stderr.splitlines()
    assert error == "Error: native code crashed (SIGSEGV) while it ran the model"
    assert fix.startswith("Fix: run: edgezoo check FILE")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_ends_the_model_too(number, converted):
    command = [BIN / "edgezoo", "run", json.loads(converted.stdout)["path"]]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, **pipes) as process:
        said = ""
        while not said.endswith("> "):  # it waits for the first turn
            said += process.stderr.read(1)
        process.send_signal(number)
        process.stderr.read()  # comes to an end only when nobody can write any longer
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
