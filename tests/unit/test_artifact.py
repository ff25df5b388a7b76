"""Writing and reading artifacts: atomic, or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from edgezoo_core import artifact, partial
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


WRITER = """
import os, sys
from pathlib import Path
from edgezoo_core import artifact, partial
with {block}:
    print("ready", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def process(block):
    """A process that is in such a block until it gets a line."""
    running = subprocess.Popen(
        [sys.executable, "-c", WRITER.format(block=block)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout.readline() == "ready\n"
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def test_what_killed_processes_left_is_swept_and_what_living_ones_write_is_not(tmp_path):
    path = tmp_path / "a.tflite"
    writing = f"artifact.writing(Path({str(path)!r})) as (output, scratch), scratch.open('w')"
    other = tmp_path / ".b.tflite.host.1.output.partial"
    other.touch()
    with process(writing):
        pass  # killed
    assert len(list(tmp_path.iterdir())) == 3
    with process(writing):
        assert len(list(tmp_path.iterdir())) == 3, "the dead one's are gone"
        with artifact.writing(path) as (output, _):
            output.write_bytes(b"whole")
        assert len(list(tmp_path.iterdir())) == 4
    with artifact.writing(path) as (output, _):
        output.write_bytes(b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a.tflite", other.name}


def test_folder_of_a_killed_process_is_swept(tmp_path):
    block = f"partial.folder(Path({str(tmp_path)!r}), 'verify') as folder, (folder / 'x').open('w')"
    with process(block):
        (left,) = tmp_path.iterdir()
    with process(block):
        (held,) = tmp_path.iterdir()
        assert held != left
        with partial.folder(tmp_path, "verify") as folder:
            assert sorted(tmp_path.iterdir()) == sorted([folder, held])
        with partial.folder(tmp_path, "reproduce"):
            pass
    with partial.folder(tmp_path, "verify") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time_writes_an_artifact(tmp_path):
    path = tmp_path / "a.tflite"
    with process(f"partial.reserved(Path({str(path)!r}))") as other:
        message = f"process {other.pid} is writing a in"
        with pytest.raises(ArtifactError, match=message) as e, partial.reserved(path):
            pass
        assert "wait" in e.value.remedy
        with partial.reserved(tmp_path / "b.tflite"):
            pass
    with partial.reserved(path):
        assert [p.name for p in tmp_path.iterdir()] == [".a.lock"]
    assert list(tmp_path.iterdir()) == []


def test_link_is_followed(tmp_path):
    (tmp_path / "link.tflite").symlink_to(tmp_path / "there" / "a.tflite")
    with artifact.writing(tmp_path / "link.tflite") as (output, _):
        output.write_bytes(b"whole")
    assert (tmp_path / "link.tflite").is_symlink()
    assert (tmp_path / "there" / "a.tflite").read_bytes() == b"whole"


def test_what_cannot_be_a_file_is_refused(tmp_path):
    (tmp_path / "folder.tflite").mkdir()
    os.mkfifo(tmp_path / "fifo.tflite")
    (tmp_path / "file").touch()
    for path in ("folder.tflite", "fifo.tflite", "file/a.tflite"):
        with pytest.raises(ArtifactError, match=r"is no (regular file|folder)"):
            artifact.refuse_odd(tmp_path / path)
    artifact.refuse_odd(tmp_path / "new" / "folders" / "a.tflite")


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


RECORD = {"file": "a.tflite", "sha256": "0" * 64}


def write(path, **changes):
    path.write_bytes(b"12345")
    manifest = {"schema": 1, "artifact": {**RECORD, "size_bytes": 5}, **changes}
    return artifact.write_manifest(path, manifest)


def test_manifest_reads_back(tmp_path):
    written = write(tmp_path / "a.tflite")
    assert artifact.read(tmp_path / "a.tflite") == written
    assert json.loads((tmp_path / "a.manifest.json").read_text()) == written.manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "has schema 2, expected 1"),
        ({"artifact": {**RECORD, "size_bytes": 6}}, "has 5 bytes, its manifest says 6"),
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
