"""JSON and TOML of strangers: what is refused, and what reading them may cost."""

from __future__ import annotations

import json
import math
import os
import re
import tracemalloc

import pytest

from edgezoo_core import cards, checkpoint, manifests, paths, recipe, texts
from edgezoo_core.errors import CardError, CheckpointError, RecipeError, plain, tame

STRANGE = {
    "NaN": '{"a": NaN}',
    "Infinity": '{"a": -Infinity}',
    "too large a float": '{"a": 1e999}',
    "too long an integer": '{"a": ' + "9" * 5000 + "}",
    "a key twice": '{"a": 1, "a": 2}',
    "a key twice inside": '{"a": {"b": 1, "b": 1}}',
    "half of a pair": '{"a": "\\ud800"}',
    "half of a pair as key": '{"\\udfff": 1}',
    "deep lists": "[" * 65 + "]" * 65,
    "very deep lists": "[" * 100_000,
    "deep tables": '{"a":' * 70 + "1" + "}" * 70,
    "a byte order mark": "\ufeff{}",
    "nothing": "",
    "two values": "{} {}",
}


@pytest.mark.parametrize("what", STRANGE)
def test_json_that_others_read_otherwise_is_refused(what):
    with pytest.raises(ValueError):  # noqa: PT011 - its subclass JSONDecodeError as well
        texts.parse_json(STRANGE[what])


def test_ordinary_json_is_what_python_reads():
    text = '{"a": [1, -2, 0.5, 1e30, 1000000000000000019884624838656], "b": "\\ud83d\\ude00"}'
    assert texts.parse_json(text) == {
        "a": [1, -2, 0.5, 1e30, 1000000000000000019884624838656],
        "b": "\U0001f600",
    }


@pytest.mark.parametrize("content", [b"\xff\xfe{\0}\0", b'{"a": "\xff"}', b" " * 101])
def test_other_encodings_and_long_files_are_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011 - UnicodeDecodeError as well
        texts.read_json(tmp_path / "a.json", 100)


def test_pipes_devices_and_folders_are_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(OSError, match=r"no regular file|Is a directory"):
            texts.read(tmp_path / name, 100)
        with pytest.raises(RecipeError):
            recipe.read(tmp_path / name)
        with pytest.raises(CardError):
            cards.read_family(tmp_path / name)


@pytest.mark.parametrize("item", ["[]", "{}", '{"a":0}', '{"a":{}}', "1e9", '""'])
def test_json_takes_no_more_than_forty_times_its_length(item):
    text = "[" + ",".join([item] * 30_000) + "]"
    tracemalloc.start()
    texts.parse_json(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{item}: {peak / len(text):.1f} bytes for one")
    assert peak < 40 * len(text)


@pytest.mark.parametrize(
    "text",
    [
        "a." * 17 + "a = 1",
        '"a" . ' * 100_000 + "a = 1",
        "[" + "a." * 20 + "a]",
        "a = " + "[" * 5000,
    ],
)
def test_toml_that_takes_hours_is_refused(tmp_path, text):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError, match="not TOML"):
        recipe.read(tmp_path / "recipe.toml")


def test_a_range_of_layers_is_not_walked_without_end(tmp_path):
    (tmp_path / "recipe.toml").write_text('[layers."0-999999999999"]\nqkv = "none"\n')
    with pytest.raises(RecipeError, match="is no layer"):
        recipe.read(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    "name",
    [
        *("", "/etc/passwd", "../a", "a/../../b", "a//b", "./a", "a\\b", "C:a", "a\0", "a\n"),
        *("\x1b[2J", "a" * 256, "\u202egnp.a", "a*", 3, None),
    ],
)
def test_names_that_lead_out_are_refused(name, tmp_path):
    assert not paths.is_inner(name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        checkpoint.index_shards(index)


def test_names_inside_are_taken():
    assert all(map(paths.is_inner, ("model.safetensors", "sub/a-00001-of-00002.bin", "ä b.txt")))


def test_links_out_of_a_folder_are_refused_and_those_of_the_hubs_cache_are_not(tmp_path):
    content = len(b"{}      ").to_bytes(8, "little") + b"{}      "
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    blobs = snapshot.parents[1] / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "abc").write_bytes(content)
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert checkpoint.open_folder(snapshot).tensors == {}

    plain_folder = tmp_path / "folder"
    plain_folder.mkdir()
    (plain_folder / "model.safetensors").symlink_to(blobs / "abc")
    with pytest.raises(CheckpointError, match="links lead out of the folder"):
        checkpoint.open_folder(plain_folder)
    (plain_folder / "model.safetensors").unlink()
    (plain_folder / "weights").write_bytes(content)
    (plain_folder / "model.safetensors").symlink_to("weights")
    assert checkpoint.open_folder(plain_folder).tensors == {}
    (tmp_path / "secret").write_text("{}")
    (plain_folder / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"folder: config\.json"):
        checkpoint.open_folder(plain_folder)


RECORD = {"file": "a.tflite", "size_bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"artifact": {**RECORD, "size_bytes": True}},
            "artifact.size_bytes is 'True', expected a count",
        ),
        ({"artifact": {**RECORD, "file": "../x"}}, "the name of a file beside it"),
        ({"bundle": {**RECORD, "file": "/etc/passwd"}}, "a relative path"),
        ({"bundle": {"size_bytes": 1, "sha256": ""}}, "bundle.file is missing"),
        ({"bundle": []}, "bundle is '\\[\\]', expected a table"),
        ({"options": {}}, "options.prefill_lengths is missing"),
        ({"recipe": {"name": "none", "weights": {"embedding": 3}}}, "a table of texts"),
        ({"checkpoint": {"repo": 1, "folder": None, "commit": None}}, "checkpoint.repo is '1'"),
        ({"engine": "\x1b[2J"}, "a line of text"),
    ],
)
def test_a_manifest_of_another_form_is_refused(changes, message):
    good = {"schema": 1, "artifact": RECORD}
    assert list(manifests.faults(good)) == []
    found = "; ".join(manifests.faults({**good, **changes}))
    assert re.search(message, found)


def test_what_a_terminal_obeys_is_shown_instead():
    text = "a\x1b]0;title\x07\r\u202etxt\x9b2J\tb\nc \u200d\u3000\U0001f600\ud800"
    assert (
        tame(text) == "a\\x1b]0;title\\x07\\r\\u202etxt\\x9b2J\tb\nc \u200d\u3000\U0001f600\\ud800"
    )
    assert plain("a\nb\x1b") == "a\\nb\\x1b"


def test_what_json_lacks_becomes_null_and_is_read_back():
    value = {"kl": math.nan, "rows": [1.5, -math.inf, (math.inf, "NaN", None, True)], "n": 3}
    kept = texts.finite(value)
    assert kept == {"kl": None, "rows": [1.5, None, [None, "NaN", None, True]], "n": 3}
    assert texts.parse_json(json.dumps(kept)) == kept
