from __future__ import annotations

import json
import os
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
    "edgezoo_core.errors",
    "edgezoo_core.plugins",
    "edgezoo_core.shapes",
}
#: All modules, those of Python itself and of click and pluggy included, beyond a bare start's.
MOST_MODULES = 155

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


def test_listing_fifty_plugins_imports_nothing_heavy_and_no_plugin(site):
    families = [f"fake{i}" for i in range(50)]
    for family in families:
        site.add(family, body="import torch")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGEZOO_")}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment, "PYTHONPATH": str(site.folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    listed = {row["distribution"] for row in answer["rows"]}
    assert {f"edgezoo-{family}" for family in families} <= listed
    imported = {name.partition(".")[0] for name in answer["modules"]}
    assert imported & HEAVY == set()
    assert {n for n in answer["modules"] if n.startswith("edgezoo")} == NEEDED
    print(f"{len(answer['modules'])} modules, allowed {MOST_MODULES}")
    assert len(answer["modules"]) <= MOST_MODULES
