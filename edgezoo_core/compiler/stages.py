"""What workers do for a conversion: look at a model, trace it, make a skeleton."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core import plugins
from edgezoo_core import recipe as recipes
from edgezoo_core.compiler.calibrating_stages import compensate, smooth
from edgezoo_core.compiler.job import HEAD, PROGRAM, TRACE, Job, format_name
from edgezoo_core.compiler.reading_stages import bench, pack, refer, score
from edgezoo_core.compiler.schema import import_litert_torch
from edgezoo_core.compiler.searching_stages import (
    choices,
    examine_held_out,
    refer_held_out,
    weigh,
)
from edgezoo_core.compiler.survey import describe, survey
from edgezoo_core.errors import ConversionError, PluginError
from edgezoo_core.hooks import LoadedPlugin
from edgezoo_core.shapes import SignatureOptions, complete
from edgezoo_core.types import LazyTensor, Progress, QuantPlan, RowSlice, WeightRule

if TYPE_CHECKING:
    from edgezoo_core.conversion.traced import TracedSignature
    from edgezoo_core.model import AuthoredModel

logger = logging.getLogger(__name__)


def examine(progress: Progress, job: Mapping[str, Any]) -> dict[str, Any]:
    """Authors the module and nothing more: says what a config rules out, and the context."""
    import_litert_torch()
    from edgezoo_core import model

    asked = Job.from_json(job)
    module: Any
    module, *_ = model.author(load_plugin(asked), asked.model, asked.config)
    return {"context_length": int(module.config.max_seq_len)}


def author(progress: Progress, job: Mapping[str, Any], is_compared: bool) -> dict[str, Any]:
    """Builds the model, loads it whole, and runs sample tokens."""
    gc.enable()
    progress("importing the libraries")
    import_litert_torch()
    from edgezoo_core import architecture, model, parity
    from edgezoo_core.checkpoint import open_folder

    asked = Job.from_json(job)
    progress("building the model")
    checkpoint = open_folder(asked.folder, asked.model.source)
    authored = model.build(load_plugin(asked), asked.model, checkpoint, asked.config)
    for warning in authored.warnings:
        logger.warning("%s", warning)
    module: Any = model.materialize(authored, progress)
    progress("running sample tokens")
    tokens = parity.sample_tokens(module.config.vocab_size)
    logits = parity.run(module, tokens)
    difference = None
    if is_compared:
        progress("running transformers on the same tokens")
        difference = asdict(parity.compare(checkpoint, logits, tokens))
    return {
        "config": architecture.describe(module.config),
        "parameters": dict(parity.parameters_by_part(module)),
        "logits_shape": list(logits.shape),
        "largest": float(logits.abs().max()),
        "difference": difference,
    }


def trace(
    progress: Progress, job: Mapping[str, Any], folder: str, share: tuple[int, int]
) -> dict[str, Any]:
    """Traces the signatures whose index is `share[0]` modulo `share[1]` and writes their graphs.

    Returns:
        What `TRACE` holds, with the signatures of this share.
    """
    progress("importing the libraries")
    import_litert_torch()
    from edgezoo_core import model
    from edgezoo_core.conversion import tracing

    gc.freeze()  # what was imported is no garbage, and need not be looked through
    asked = Job.from_json(job)
    plugin = load_plugin(asked)
    authored, options = _author(asked, plugin)
    module: Any = authored.module
    model.prepare(authored, options)
    # A recipe that does not fit is told before anything is traced.
    plugin.quant_recipe(asked.model, module, asked.recipe)
    about = {
        **describe(module),
        "options": asdict(options),
        "reading": authored.config_reading,
        "account": authored.config_account,
        "warnings": list(authored.warnings),
        "sources": {
            n: [[s.name, s.start, s.stop] for s in _slices(n, w)]
            for n, w in authored.weights.items()
        },
    }
    index, count = share
    traced = tracing.trace_model(
        module,
        lambda m: plugin.signatures(asked.model, m, options),
        lambda i: i % count == index,
        may_stamp=not plugin.answers("signatures"),
        progress=progress,
    )
    for signature in traced:
        (Path(folder) / f"{signature.name}.tflite").write_bytes(signature.content)
    described = [
        {
            "name": s.name,
            "parameters": [[n, list(shape)] for n, shape in s.parameters],
            "block_scope": s.block_scope,
        }
        for s in traced
    ]
    return {**about, "signatures": described}


def skeleton(
    progress: Progress, job: Mapping[str, Any], trace_folder: str, folder: str
) -> dict[str, Any]:
    """Quantizes the traced graph and writes the skeleton and its program."""
    progress("quantizing the graph")
    from edgezoo_core.conversion import skeleton as skeletons

    asked = Job.from_json(job)
    about = json.loads((Path(trace_folder) / TRACE).read_text(encoding="utf-8"))
    graphs = [s.graph(about["depth"]) for s in _traced(Path(trace_folder), about)]
    plan = _plan(asked, about)
    built = skeletons.build(
        graphs,
        plan,
        {n: tuple(shape) for n, shape in about["shapes"].items()},
        {n: [RowSlice(*s) for s in slices] for n, slices in about["sources"].items()},
    )
    result = {
        "program": built.program.to_json(),
        "signatures": [asdict(s) for s in built.signatures],
        **_describe(plan),
    }
    (Path(folder) / HEAD).write_bytes(built.head)
    (Path(folder) / PROGRAM).write_text(json.dumps(result), encoding="utf-8")
    return {}


def litert(progress: Progress, job: Mapping[str, Any], output: str, scratch: str) -> dict[str, Any]:
    """Converts with litert-torch's own path, which holds the model in memory several times."""
    gc.enable()
    progress("importing the libraries")
    import_litert_torch()
    from edgezoo_core import folds, model
    from edgezoo_core.conversion import litert as path
    from edgezoo_core.conversion import rescaling

    asked = Job.from_json(job)
    plugin = load_plugin(asked)
    authored, options = _author(asked, plugin)
    model.prepare(authored, options)
    plan = plugin.quant_recipe(asked.model, authored.module, asked.recipe)
    signatures = plugin.signatures(asked.model, authored.module, options)
    module = model.materialize(authored, progress)
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
    factors = rescaling.build(folds.places(module), asked.recipe.folds, shapes, asked.model.source)
    rescaling.apply(factors, module)
    specs = path.convert(module, signatures, plan, Path(output), Path(scratch), progress)
    return {
        "account": authored.config_account,
        "warnings": list(authored.warnings),
        "signatures": [asdict(s) for s in specs],
        **_describe(plan),
    }


STAGES: Mapping[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f
    for f in (
        examine,
        survey,
        author,
        smooth,
        compensate,
        choices,
        weigh,
        refer_held_out,
        examine_held_out,
        trace,
        skeleton,
        litert,
        score,
        refer,
        pack,
        bench,
    )
}


def load_plugin(job: Job) -> LoadedPlugin:
    """Loads the plugin of a job's family."""
    family = job.model.family
    for plugin in plugins.discover():
        if plugin.family == family:
            return plugins.load(plugin)
    raise PluginError(f"family {family} is not installed any more", remedy="install its plugin")


def _author(job: Job, plugin: LoadedPlugin) -> tuple[AuthoredModel, SignatureOptions]:
    from edgezoo_core import model
    from edgezoo_core.checkpoint import open_folder

    checkpoint = open_folder(job.folder, job.model.source)
    authored = model.build(plugin, job.model, checkpoint, job.config)
    return authored, complete(job.shapes, job.base, authored.context_length)


def _slices(name: str, weight: LazyTensor) -> tuple[RowSlice, ...]:
    slices = getattr(weight, "slices", None)
    rows = weight.shape[0] if weight.shape else 1
    if slices is None or sum(s.stop - s.start for s in slices) != rows:
        raise ConversionError(
            f"the plugin's load hook gives {name} as something else than rows of the checkpoint",
            remedy="use --engine litert, or let the hook's tensors have `slices`",
        )
    return tuple(slices)


def _traced(folder: Path, about: Mapping[str, Any]) -> list[TracedSignature]:
    from edgezoo_core.conversion.traced import TracedSignature

    return [
        TracedSignature(
            s["name"],
            (folder / f"{s['name']}.tflite").read_bytes(),
            tuple((n, tuple(shape)) for n, shape in s["parameters"]),
            s["block_scope"],
        )
        for s in about["signatures"]
    ]


def _plan(job: Job, about: Mapping[str, Any]) -> QuantPlan:
    """Meets the recipe with the model: from what the trace noted, unless the plugin answers."""
    plugin = load_plugin(job)
    if plugin.answers("quant_recipe"):
        import_litert_torch()
        authored, _ = _author(job, plugin)
        return plugin.quant_recipe(job.model, authored.module, job.recipe)
    weights = [WeightRule(**{**w, "shape": tuple(w["shape"])}) for w in about["weights"]]
    return recipes.apply(job.recipe, weights, job.model.source)


def _describe(plan: QuantPlan) -> dict[str, Any]:
    def place(rule: WeightRule) -> str:
        return rule.part if rule.layer is None else f"layers.{rule.layer}.{rule.part}"

    return {
        "recipe": {
            "name": plan.name,
            "weights": {place(r): format_name(r.format) for r in plan.rules},
        },
        "growth_bytes": recipes.growth_bytes(plan),
    }
