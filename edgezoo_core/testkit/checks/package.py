"""Checks of the package: its card, its import, its hooks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from edgezoo_core import environment
from edgezoo_core import recipe as recipes
from edgezoo_core.errors import RecipeError, listing
from edgezoo_core.testkit.check import CheckFailedError, check, demand
from edgezoo_core.testkit.subject import Subject

#: What importing a plugin must not bring: `edgezoo plugins` would pay for it.
HEAVY = (
    "torch",
    "litert_torch",
    "tensorflow",
    "transformers",
    "numpy",
    "huggingface_hub",
    "safetensors",
)
#: Hooks for which the core has no default.
NEEDED_HOOKS = ("author", "tensor_names")

_IMPORT = """
import importlib, json, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
brought = {name.partition(".")[0] for name in sys.modules.keys() - before}
sys.stdout.write("\\n" + json.dumps(sorted(brought & set(sys.argv[2:]))))
"""
_IMPORT_TIMEOUT_S = 60


@check("card-valid", since="0.1.0")
def card_valid(subject: Subject) -> str:
    """models.toml is complete, and its family, hook API and recipes are known."""
    demand(subject.plugin.is_usable and subject.plugin.state == "ok", subject.plugin.reason)
    unknown = []
    for name in subject.recipes:
        try:
            recipes.resolve(name)
        except RecipeError as e:
            unknown.append(e.message)
    demand(not unknown, *unknown)
    return f"{listing(subject.card.models)}; {listing(subject.card.architectures)}"


@check("import-light", since="0.1.0")
def import_light(subject: Subject) -> str:
    """Importing the plugin succeeds and brings no library that computes."""
    module = subject.plugin.module
    path = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", _IMPORT, module, *HEAVY]
    try:
        done = subprocess.run(
            command,
            env={**environment.without_tokens(), "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise CheckFailedError(f"import of {module} takes more than {e.timeout:.0f} s") from e
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ends with {done.returncode}"])[-1]
        raise CheckFailedError(f"import of {module} failed: {reason}")
    last = done.stdout.strip().rpartition("\n")[2]
    demand(last.startswith("["), f"import of {module} ends the process")
    brought = json.loads(last)
    demand(not brought, f"import of {module} brings {listing(brought)}; import inside of the hooks")
    return module


@check("hooks-known", since="0.1.0", needs=["card-valid"])
def hooks_known(subject: Subject) -> str:
    """The hooks are known, take known arguments without defaults, and none is missing."""
    hooks = subject.hooks
    missing = [name for name in NEEDED_HOOKS if not hooks.answers(name)]
    demand(not missing, f"it does not answer {listing(missing)}, for which there is no default")
    return f"answers {listing(hooks.hooks)}"


CHECKS = (card_valid, import_light, hooks_known)
