"""Writing and reading artifacts: atomic, or not at all."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys

import pytest

from edgezoo_core import artifact
from edgezoo_core.errors import ArtifactError


def test_name_says_model_recipe_and_cache():
    assert artifact.file_name("gemma-2b", "fp16", 1280) == "gemma-2b_fp16_ekv1280.tflite"


def test_file_appears_whole_and_alone(tmp_path):
    path = tmp_path / "new" / "a.tflite"
    with artifact.writing(path) as (partial, scratch):
        partial.write_bytes(b"whole")
        scratch.write_bytes(b"scratch")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert [p.name for p in path.parent.iterdir()] == ["a.tflite"]


@pytest.mark.parametrize("fault", [ValueError("no"), KeyboardInterrupt()])
def test_fault_keeps_what_was_there_and_leaves_nothing(tmp_path, fault):
    path = tmp_path / "a.tflite"
    path.write_bytes(b"before")

    def fail():
        with artifact.writing(path) as (partial, scratch):
            partial.write_bytes(b"half")
            scratch.write_bytes(b"scratch")
            raise fault

    with pytest.raises(type(fault)):
        fail()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.tflite", b"before")]


def test_what_a_killed_process_left_is_swept(tmp_path):
    path = tmp_path / "a.tflite"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = platform.node()
    stale = tmp_path / f".a.tflite.{host}.{gone.pid}.output.partial"
    kept = [
        tmp_path / f".a.tflite.{host}.{os.getpid()}.other.partial",  # a living process's
        tmp_path / f".a.tflite.elsewhere.{gone.pid}.output.partial",  # another machine's
        tmp_path / f".b.tflite.{host}.{gone.pid}.output.partial",  # another file's
    ]
    for file in (stale, *kept):
        file.write_bytes(b"part")
    with artifact.writing(path) as (partial, _):
        partial.write_bytes(b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a.tflite", *(f.name for f in kept)}


def test_full_disk_is_told(tmp_path):
    with (
        pytest.raises(ArtifactError, match="No space left on device") as e,
        artifact.writing(tmp_path / "a.tflite"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "free some space" in e.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_something_else_is_not_blamed_on_the_disk(tmp_path):
    with pytest.raises(ConnectionResetError), artifact.writing(tmp_path / "a.tflite"):
        raise ConnectionResetError


def test_folder_in_the_way_is_told(tmp_path):
    (tmp_path / "a.tflite").mkdir()
    with (
        pytest.raises(ArtifactError, match="cannot be written"),
        artifact.writing(tmp_path / "a.tflite") as (partial, _),
    ):
        partial.write_bytes(b"whole")


def write(path, **changes):
    path.write_bytes(b"12345")
    manifest = {"schema": 1, "artifact": {"size_bytes": 5}, **changes}
    return artifact.write_manifest(path, manifest)


def test_manifest_reads_back(tmp_path):
    written = write(tmp_path / "a.tflite")
    assert artifact.read(tmp_path / "a.tflite") == written
    assert json.loads((tmp_path / "a.manifest.json").read_text()) == written.manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "has schema 2, expected 1"),
        ({"artifact": {"size_bytes": 6}}, "has 5 bytes, its manifest says 6"),
        ({"artifact": None}, "is no manifest"),
    ],
)
def test_manifest_of_another_file_is_refused(tmp_path, changes, message):
    write(tmp_path / "a.tflite", **changes)
    with pytest.raises(ArtifactError, match=message):
        artifact.read(tmp_path / "a.tflite")


def test_what_exists_is_not_replaced_unasked(tmp_path):
    path = tmp_path / "a.tflite"
    artifact.refuse_existing(path)
    write(path)
    with pytest.raises(ArtifactError) as e:
        artifact.refuse_existing(path)
    assert "--force" in e.value.remedy
