"""What a worker tells of a model before any of its weights is here: from config and headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgezoo_core import folds
from edgezoo_core import recipe as recipes
from edgezoo_core.compiler.job import Job, format_name
from edgezoo_core.compiler.schema import import_litert_torch
from edgezoo_core.errors import CheckpointError, EdgezooError
from edgezoo_core.types import Progress

if TYPE_CHECKING:
    from edgezoo_core.checkpoint import Checkpoint

#: Name, shape, dtype and bytes of a tensor, as it passes between processes.
Header = tuple[str, Sequence[int], str | None, int]


def survey(
    progress: Progress, job: Mapping[str, Any], tensors: Sequence[Header] | None
) -> dict[str, Any]:
    """Authors the module, maps a checkpoint's headers to it, and meets it with the recipe.

    Args:
        progress: Told of each stage.
        job: What would be converted.
        tensors: The headers; None where they cannot be read.

    Returns:
        `about` (see `describe`), None if the config is refused; `formats` by use of a weight, in
        the order of `about`'s weights, None if the recipe does not fit; `fit`, what does not map
        (see `edgezoo_core.mapping.Fit`); `faults`, each with kind, subject, message and remedy; and
        `warnings` about the config. No fault hides another one that can still be found.
    """
    progress("importing the libraries")
    import_litert_torch()
    from edgezoo_core import mapping, model
    from edgezoo_core.compiler.stages import load_plugin

    asked = Job.from_json(job)
    found: dict[str, Any] = {
        "about": None, "formats": None, "fit": None, "faults": [], "warnings": []
    }  # fmt: skip
    faults = found["faults"]
    progress("building the model")
    with _collecting(faults, "config"):
        plugin = load_plugin(asked)
        module, config, found["warnings"] = model.author(plugin, asked.model, asked.config)
        found["about"] = describe(module)
    if found["about"] is None:
        return found
    with _collecting(faults, "recipe"):
        rules = plugin.quant_recipe(asked.model, module, asked.recipe).rules
        formats = {(r.parameter, r.operator): format_name(r.format) for r in rules}
        weights = recipes.weights(module)
        found["formats"] = [formats.get((w.parameter, w.operator), "none") for w in weights]
    if tensors is not None:
        with _collecting(faults, "tensors"):
            checkpoint = _checkpoint(asked, tensors)
            names = plugin.tensor_names(asked.model, config, frozenset(checkpoint.tensors))
            weights_of = plugin.load(asked.model, module, checkpoint, names)
            fit = mapping.compare(module, weights_of, checkpoint)
            found["fit"] = asdict(fit)
            mapping.refuse_misfits(fit, checkpoint.source)
    return found


def describe(module: Any) -> dict[str, Any]:
    """Returns what the shapes of a file follow from, as plain values.

    Returns:
        `depth` in blocks, `context_length` in tokens, `shapes` of the parameters by name, `weights`
        (see `edgezoo_core.recipe.weights`), `folds` (see `edgezoo_core.folds.places`), and
        `kv_slot_bytes`, which a slot of the KV cache takes over all layers, keys and values in
        float32.
    """
    config = module.config
    attentions = [config.block_config(i).attn_config for i in range(config.num_layers)]
    return {
        "depth": len(getattr(module, "transformer_blocks", ())),
        "context_length": int(config.max_seq_len),
        "shapes": {n: list(p.shape) for n, p in module.named_parameters()},
        "weights": [asdict(w) for w in recipes.weights(module)],
        "folds": folds.to_json(folds.places(module)),
        "kv_slot_bytes": sum(2 * 4 * a.num_query_groups * a.head_dim for a in attentions),
    }


@contextmanager
def _collecting(faults: list[dict[str, str]], subject: str) -> Iterator[None]:
    try:
        yield
    except EdgezooError as e:
        kind = type(e).__name__
        faults.append({"kind": kind, "subject": subject, "message": e.message, "remedy": e.remedy})


def _checkpoint(job: Job, tensors: Sequence[Header]) -> Checkpoint:
    from edgezoo_core.checkpoint import Checkpoint
    from edgezoo_core.tensor_files import StoredTensor

    def refuse() -> NoReturn:
        raise CheckpointError(
            f"{job.model.source}: a plan has headers alone, no values",
            remedy="let the plugin's load hook read tensors when they are asked for, not before",
        )

    held = {
        name: StoredTensor(name, tuple(shape), dtype, "", None, size, refuse)
        for name, shape, dtype, size in tensors
    }
    return Checkpoint(job.model.source, Path(), job.config, held, ())
