"""The command `bundle` on a real model, run by LiteRT-LM's own command."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from command import BIN, ENVIRONMENT, edgezoo

#: Longer than both prefill lengths, 8 and 128, and no multiple of either.
STORY = (
    "Lighthouses stand on rocky coasts and warn ships of danger. Their lamps once burned whale oil,"
    " later kerosene, and today most of them use electric light. A lens made of many glass rings,"
    " invented by Augustin Fresnel in 1822, bends the light into a narrow beam that can be seen"
    " from more than thirty kilometres away. Each lighthouse flashes in a pattern of its own, so"
    " that sailors can tell one from another at night. Keepers used to live in the tower with their"
    " families, trimming wicks, winding clockwork and writing down the weather. Nowadays nearly all"
    " lighthouses are automatic, and many of the old towers have become museums, hotels or homes."
)
PROMPTS = (
    "What is the capital of France?",
    "Name three fruits.",
    "Write 123 + 45 as words,\nplease: \u00e9\u00e8 \U0001f600",
    f"{STORY}\n\nWhat is this text about? Answer in one sentence.",
    f"{STORY}\n\nSummarize the text.",
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def litert_lm(path, prompt):
    """Runs a bundle greedily. The exit code is 0 even on failure, so the text counts."""
    done = subprocess.run(
        [BIN / "litert-lm", "run", path, "--prompt", prompt, "--temperature", "0", "--top-k", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module")
def model(smollm2, tmp_path_factory):
    """What `convert` made of SmolLM2 with the defaults."""
    options = ("--no-bundle", "--output", tmp_path_factory.mktemp("real"), "--json")
    return json.loads(edgezoo("convert", smollm2, *options).stdout)


@pytest.fixture(scope="module")
def bundle(model):
    """What `bundle --json` gave."""
    return json.loads(edgezoo("bundle", model["path"], "--json").stdout)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_litert_lm_answers_as_the_interpreter_does(prompt, model, bundle):
    options = ("--engine", "interpreter", "--max-tokens", 900, "--json")
    expected = json.loads(edgezoo("run", model["path"], "--prompt", prompt, *options).stdout)
    print(len(expected["prompt_tokens"]), "tokens ->", expected["text"])
    # An answer that is cut would be cut elsewhere by LiteRT-LM.
    assert 3 < len(expected["answer_tokens"]) < 900
    assert litert_lm(bundle["path"], prompt).strip() == expected["text"].strip()


#: Answers of one sentence: an answer that is cut is remembered otherwise by LiteRT-LM.
CONVERSATION = (
    "What is the capital of France?",
    "And of Italy?",
    "Name three fruits.",
    "Which of them is yellow?",
    "Thank you.",
)


def chat(model, engine, *options):
    return subprocess.Popen(
        [BIN / "edgezoo", "run", model["path"], "--engine", engine, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def test_both_engines_hold_the_same_conversation(model, bundle):
    options = ("--system", "You know everything.", "--max-tokens", "300")
    said = {}
    for engine in ("interpreter", "litert-lm"):
        process = chat(model, engine, *options)
        said[engine], stderr = process.communicate("\n".join(CONVERSATION) + "\n", timeout=300)
        assert process.returncode == 0, stderr
        assert len(re.findall(rf"\d+ tokens in \d+\.\d s with {engine}", stderr)) == 5
    print(said["interpreter"])
    assert said["interpreter"] == said["litert-lm"]


@pytest.mark.parametrize("engine", ["interpreter", "litert-lm"])
def test_interrupt_ends_the_answer_and_not_the_chat(engine, model, bundle):
    process = chat(model, engine, "--max-tokens", "1000")
    process.stdin.write("Write a long story about the sea.\n")
    process.stdin.flush()
    begun = process.stdout.read(20)  # it speaks
    process.send_signal(signal.SIGINT)
    out, err = process.communicate("What is the capital of France?\n", timeout=300)
    print(begun + out)
    assert process.returncode == 0, err
    counts = re.findall(r"(\d+) tokens in", err)
    assert len(counts) == 2
    assert int(counts[0]) < 300
    assert "Paris" in out


def test_what_it_says_of_the_bundle_is_so(model, bundle):
    path = Path(bundle["path"])
    assert path == Path(model["path"]).with_suffix(".litertlm")
    content = path.read_bytes()
    assert bundle["size_bytes"] == len(content)
    assert bundle["sha256"] == hashlib.sha256(content).hexdigest()
    assert (bundle["tokenizer"], bundle["start_token"]) == ("huggingface", None)
    assert bundle["stop_tokens"] == [2]
    prompts = bundle["prompt_templates"]
    # Its template speaks of itself first, which prefixes and suffixes cannot.
    assert prompts["kind"] == "generated_jinja"
    assert prompts["user"] == {"prefix": "<|im_start|>user\n", "suffix": "<|im_end|>\n"}


def test_manifest_has_the_bundle_and_all_that_it_had(model, bundle):
    path = Path(model["path"]).with_suffix(".manifest.json")
    manifest = json.loads(path.read_text())
    recorded = manifest.pop("bundle")
    assert manifest == model["manifest"]
    assert recorded == {k: v for k, v in bundle.items() if k != "path"}


def test_what_stands_there_stays_unless_forced(model, bundle):
    path = Path(bundle["path"])
    before = path.stat()
    done = edgezoo("bundle", model["path"], code=1)
    assert "Error:" in done.stderr
    assert "--force" in done.stderr
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    done = edgezoo("bundle", model["path"], "--force")
    assert bundle["sha256"] in done.stdout
    assert path.stat().st_ino != before.st_ino
    assert hashlib.sha256(path.read_bytes()).hexdigest() == bundle["sha256"]


def test_a_bare_file_takes_a_named_tokenizer(model, bundle, tmp_path):
    bare = tmp_path / "bare.tflite"
    shutil.copy(model["path"], bare)
    done = edgezoo("bundle", bare, code=1)
    assert "--tokenizer" in done.stderr
    assert names(tmp_path) == ["bare.tflite"]
    source = model["manifest"]["checkpoint"]["folder"]
    made = json.loads(
        edgezoo(
            *("bundle", bare, "--tokenizer", source, "--output", tmp_path / "new", "--json")
        ).stdout
    )
    assert made["path"] == str(tmp_path / "new" / "bare.litertlm")
    assert made["sha256"] == bundle["sha256"]
    assert names(tmp_path) == ["bare.tflite", "new"]


def test_a_folder_that_cannot_be_written_is_told(model, tmp_path):
    (tmp_path / "taken").write_text("a file")
    output = tmp_path / "taken" / "x.litertlm"
    done = edgezoo("bundle", model["path"], "--output", output, code=1)
    assert "taken is no folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_tokenizer_is_told(model, tmp_path):
    output = tmp_path / "x.litertlm"
    done = edgezoo("bundle", model["path"], "--tokenizer", tmp_path, "--output", output, code=1)
    assert "no tokenizer" in done.stderr
    assert names(tmp_path) == []
