from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

HEAVY = {
    "huggingface_hub",
    "jax",
    "litert_torch",
    "numpy",
    "rich",
    "safetensors",
    "tensorflow",
    "torch",
    "transformers",
}

#: The modules of the core that a listing needs. Each costs every user at every start.
NEEDED = {
    "edgezoo_core",
    "edgezoo_core.cards",
    "edgezoo_core.cli",
    "edgezoo_core.cli.listing",
    "edgezoo_core.cli.options",
    "edgezoo_core.cli.process",
    "edgezoo_core.cli.terminal",
    "edgezoo_core.errors",
    "edgezoo_core.plugins",
    "edgezoo_core.shapes",
    "edgezoo_core.tables",
    "edgezoo_core.texts",
}
#: All modules, those of Python itself and of click and pluggy included, beyond a bare start's.
MOST_MODULES = 156

SCRIPT = """
import sys
bare = set(sys.modules)
import contextlib, io, json
from edgezoo_core.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    main(["list", "--json"], standalone_mode=False)
rows = json.loads(out.getvalue())
print(json.dumps({"rows": rows, "modules": sorted(set(sys.modules) - bare)}))
"""

OPEN_SCRIPT = """
import json, sys
from pathlib import Path
from edgezoo_core import checkpoint, tensor_files
opened = checkpoint.open_folder(Path(sys.argv[1]))
offsets = {name: tensor.offset for name, tensor in opened.tensors.items()}
print(json.dumps({"offsets": offsets, "modules": sorted(sys.modules)}))
"""


def run(*arguments, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("EDGEZOO_")}
    done = subprocess.run(
        [sys.executable, "-c", *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_listing_fifty_plugins_imports_nothing_heavy_and_no_plugin(site):
    families = [f"fake{i}" for i in range(50)]
    for family in families:
        site.add(family, body="import torch")
    answer = run(SCRIPT, PYTHONPATH=str(site.folder))
    listed = {row["distribution"] for row in answer["rows"]}
    assert {f"edgezoo-{family}" for family in families} <= listed
    imported = {name.partition(".")[0] for name in answer["modules"]}
    assert imported & HEAVY == set()
    assert {n for n in answer["modules"] if n.startswith("edgezoo")} == NEEDED
    print(f"{len(answer['modules'])} modules, allowed {MOST_MODULES}")
    assert len(answer["modules"]) <= MOST_MODULES


def test_opening_safetensors_imports_nothing_heavy(tmp_path):
    header = json.dumps({"norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}})
    content = struct.pack("<Q", len(header)) + header.encode() + bytes(16)
    (tmp_path / "model.safetensors").write_bytes(content)
    answer = run(OPEN_SCRIPT, str(tmp_path))
    assert answer["offsets"] == {"norm.weight": 8 + len(header)}
    assert {name.partition(".")[0] for name in answer["modules"]} & HEAVY == set()
