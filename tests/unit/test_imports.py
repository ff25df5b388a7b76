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

SCRIPT = """
import json, sys
import edgezoo_core.plugins, edgezoo_core.targets, edgezoo_core.recipe
found = edgezoo_core.plugins.discover()
states = {p.family: p.state for p in found}
print(json.dumps({"states": states, "modules": sorted(sys.modules)}))
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
    assert {f: answer["states"].get(f) for f in families} == dict.fromkeys(families, "ok")
    imported = {name.partition(".")[0] for name in answer["modules"]}
    assert imported & HEAVY == set()
    assert [n for n in imported if n.startswith("edgezoo") and n != "edgezoo_core"] == []
