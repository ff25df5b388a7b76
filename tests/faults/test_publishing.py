"""A file and the manifest that speaks of it, replaced by a process that dies at any call."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from faulty import INJECTED

from edgezoo_core import artifact
from edgezoo_core.errors import ArtifactError

#: What bundling and mending do, without the libraries that they need.
CODE = """
import json, sys
from pathlib import Path
from edgezoo_core import artifact, partial
model, path = Path(sys.argv[1]), Path(sys.argv[2])
with partial.files(path) as (output, _):
    output.write_bytes(b"after.")
    artifact.publish(output, path, json.loads(sys.argv[3]), beside=model)
"""


def manifest(content, model=b"model."):
    def record(name, content):
        return {
            "file": name,
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }

    return {
        "schema": 1,
        "artifact": record("m.tflite", model),
        "bundle": record("m.litertlm", content),
    }


def stand(folder):
    (folder / "m.tflite").write_bytes(b"model.")
    (folder / "m.litertlm").write_bytes(b"before")  # of the same size
    (folder / "m.manifest.json").write_text(json.dumps(manifest(b"before")))


def run(folder, **plan):
    files = [folder / "m.tflite", folder / "m.litertlm"]
    environment = {
        **os.environ,
        "EDGEZOO_FAULT": json.dumps({"watch": [str(folder)], **plan}),
        "PYTHONPATH": os.pathsep.join([str(INJECTED), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(
        [sys.executable, "-c", CODE, *files, json.dumps(manifest(b"after."))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def believed(path):
    try:
        found = artifact.read(path).manifest
    except ArtifactError:
        return None
    return found["bundle"]["sha256"]


@pytest.mark.parametrize("what", ["SIGKILL", "EIO"])
def test_no_reader_takes_one_file_for_another(what, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    stand(out)
    log = tmp_path / "log"
    assert run(out, log=str(log)).returncode == 0
    points = log.read_text().splitlines()
    assert len(points) > 15
    seen = set()
    for point in points:
        stand(out)
        done = run(out, at=point, do=what)
        assert (what == "EIO") == (done.returncode != -9), point
        content = (out / "m.litertlm").read_bytes()
        of_bundle, of_model = believed(out / "m.litertlm"), believed(out / "m.tflite")
        assert of_bundle in (None, hashlib.sha256(content).hexdigest()), point
        assert of_model is not None, "the model was not touched"
        if content == b"before":
            assert of_bundle is not None, f"what stood there is lost at {point}"
        seen.add((content, of_bundle is not None))
    assert seen >= {(b"before", True), (b"after.", False), (b"after.", True)}
    stand(out)
    assert run(out).returncode == 0
    assert artifact.read(out / "m.litertlm").manifest == manifest(b"after.")
    assert sorted(p.name for p in out.iterdir()) == ["m.litertlm", "m.manifest.json", "m.tflite"]
