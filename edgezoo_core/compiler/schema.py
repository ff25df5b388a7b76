"""litert-torch without tensorflow.

litert-torch's generative layers import `tensorflow.lite.python.schema_py_generated`, and nothing
else of tensorflow. `ai_edge_litert.schema_py_generated` is the same generated module, so it answers
for it: that saves an install of 1.9 GB, two seconds and half a gigabyte of memory. Workers do this,
and `edgezoo_core.testkit`; nobody ever sees a tensorflow that is none.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

_PARENTS = ("tensorflow", "tensorflow.lite", "tensorflow.lite.python")
_SCHEMA = "schema_py_generated"


def import_litert_torch() -> None:
    """Imports litert-torch's generative layers; afterwards no trace of the stand-in is left."""
    before = {name: sys.modules.get(name) for name in (*_PARENTS, f"{_PARENTS[-1]}.{_SCHEMA}")}
    schema = importlib.import_module(f"ai_edge_litert.{_SCHEMA}")
    for name in _PARENTS:
        module = ModuleType(name)
        module.__path__ = []
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
    sys.modules[f"{_PARENTS[-1]}.{_SCHEMA}"] = schema
    setattr(sys.modules[_PARENTS[-1]], _SCHEMA, schema)
    try:
        importlib.import_module("litert_torch.generative.layers.lora")
    finally:
        for name, found in before.items():
            if found is None:
                del sys.modules[name]
            else:
                sys.modules[name] = found
