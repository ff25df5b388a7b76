"""Recipes: from a name or a TOML file to the format of every weight."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core import folds, texts
from edgezoo_core.errors import RecipeError, listing, nearest
from edgezoo_core.types import PARTS, Operator, QuantPlan, Recipe, WeightFormat, WeightRule

if TYPE_CHECKING:
    import torch

#: Every format that ai-edge-quantizer 0.10 and the LiteRT interpreter both take for
#: FULLY_CONNECTED and EMBEDDING_LOOKUP.
FORMATS: Mapping[str, WeightFormat | None] = {
    "none": None,
    **{
        f.name: f
        for f in (
            WeightFormat("fp16", 16, is_float=True, is_dynamic=False),
            WeightFormat("weight_only_int8", 8, is_float=False, is_dynamic=False),
            WeightFormat("weight_only_int4", 4, is_float=False, is_dynamic=False),
            WeightFormat("dynamic_int8", 8, is_float=False, is_dynamic=True),
            WeightFormat("dynamic_int4", 4, is_float=False, is_dynamic=True),
            WeightFormat("dynamic_int4_block32", 4, is_float=False, is_dynamic=True, block_size=32),
            WeightFormat("dynamic_int4_block64", 4, is_float=False, is_dynamic=True, block_size=64),
            WeightFormat(
                "dynamic_int4_block128", 4, is_float=False, is_dynamic=True, block_size=128
            ),
            WeightFormat(
                "dynamic_int4_block256", 4, is_float=False, is_dynamic=True, block_size=256
            ),
        )
    },
}

#: Formats that people ask for, with the reason why there are none such.
REFUSED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\w*int8_block\d+"), "ai-edge-quantizer refuses int8 by blocks"),
    (
        re.compile(r"weight_only_int4_block\d+"),
        "ai-edge-quantizer refuses weight-only int4 by blocks",
    ),
    (
        re.compile(r"static_\w+"),
        "static activations need calibration, which edgezoo does not do yet",
    ),
)

#: The recipes by name; those that are formats store every weight in it.
RECIPES: Mapping[str, str] = {
    "none": "float32, as exact as the checkpoint",
    "fp16": "float16 weights, computed in float32",
    "weight_only_int8": "int8 weights, one scale per output channel, computed in float32",
    "dynamic_int8": "int8 weights and, at run time, int8 activations",
    "int8": "dynamic_int8, smoothed: outliers of activations folded into weights, by calibration",
    "int4": "dynamic_int4_block32, smoothed, with errors that make up for each other",
    "dynamic_int8_linear": "dynamic_int8 for linear layers, the embedding stays float32",
    "dynamic_int4_block32": "int4 weights in blocks of 32, int8 activations",
    "dynamic_int4_block128": "int4 weights in blocks of 128, int8 activations",
}
DEFAULT = "dynamic_int8"

#: Names that stand for several parts in a recipe file.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": ("qkv", "o"),
    "feedforward": ("gate", "up", "down"),
}

_PARAMETER = re.compile(r"transformer_blocks\.(?P<layer>\d+)\.(?P<module>[\w.]+)\.weight")
_BLOCK_PARTS = {
    "atten_func.qkv_projection": "qkv",
    "atten_func.output_projection": "o",
    "ff.w2": "down",
    "ff.w3": "up",
}


def resolve(text: str) -> Recipe:
    """Returns the recipe of a name, or of a file that ends in `.toml`.

    Raises:
        RecipeError: There is no such recipe, or the file is malformed.
    """
    if text.endswith(".toml"):
        return read(Path(text).expanduser())
    if text == "dynamic_int8_linear":
        return Recipe(text, FORMATS["dynamic_int8"], {"embedding": None})
    if text == "int8":
        return Recipe(text, FORMATS["dynamic_int8"], is_smoothed=True)
    if text == "int4":
        return Recipe(text, FORMATS["dynamic_int4_block32"], is_smoothed=True, is_compensated=True)
    if text in RECIPES:
        return Recipe(text, FORMATS[text])
    for pattern, reason in REFUSED:
        if pattern.fullmatch(text):
            raise RecipeError(f"recipe {text} is refused: {reason}", remedy="choose another")
    guess = nearest(text, RECIPES)
    raise RecipeError(
        f"no recipe is called {text!r} (there are {listing(RECIPES)})",
        remedy=f"did you mean {guess}?" if guess else "choose one, or name a .toml file",
    )


def read(path: Path) -> Recipe:
    """Reads a recipe file.

    Keys: `name`, `default`, the parts (`PARTS`), the groups `attention` and `feedforward`, and
    tables `[layers.N]` with parts and groups, where N is an index (negative counts from the end)
    or a range `"2-5"`. Values are names of formats. A part beats its group, a layer beats both.
    `smooth = true` lets the conversion calibrate and choose what is folded; a table `[folds]` says
    it instead, as a conversion recorded it (see `edgezoo_core.folds`). `compensate = true` lets it
    calibrate, too, and round integers so that their errors make up for each other.

    Raises:
        RecipeError: The file cannot be read, or a key or value is unknown.
    """
    try:
        values = texts.read_toml(path)
    except OSError as e:
        raise RecipeError(f"{path}: {e.strerror or e}", remedy="check the path") from e
    except ValueError as e:
        raise RecipeError(f"{path}: not TOML: {e}", remedy="correct the file") from e
    name = values.pop("name", path.stem)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise RecipeError(
            f"{path}: name {name!r} does not fit into a file name", remedy="rename it"
        )
    if name in RECIPES:
        raise RecipeError(f"{path}: {name} is the name of a built-in recipe", remedy="set `name`")
    layers = values.pop("layers", {})
    if not isinstance(layers, dict) or not all(isinstance(v, dict) for v in layers.values()):
        raise RecipeError(f"{path}: layers must be tables", remedy="write [layers.0]")
    default = _format(values.pop("default", "none"), f"{path}: default")
    is_smoothed = _switch(values, "smooth", path)
    is_compensated = _switch(values, "compensate", path)
    chosen_folds = values.pop("folds", {})
    if is_smoothed and chosen_folds:
        raise RecipeError(
            f"{path}: smooth = true chooses what [folds] says already", remedy="leave out one"
        )
    parts = _parts(
        values, str(path), ("compensate", "default", "folds", "layers", "name", "smooth")
    )
    overrides: dict[int, Mapping[str, WeightFormat | None]] = {}
    for key, table in layers.items():
        chosen = _parts(table, f"{path}: layers.{key}")
        for index in _layer_indexes(key, path):
            overrides[index] = {**overrides.get(index, {}), **chosen}
    found = read_folds(chosen_folds, str(path))
    return Recipe(name, default, parts, overrides, is_smoothed, found, is_compensated)


def _switch(values: dict[str, Any], key: str, path: Path) -> bool:
    value = values.pop(key, False)
    if not isinstance(value, bool):
        raise RecipeError(f"{path}: {key} must be true or false", remedy="write it without quotes")
    return value


def read_folds(table: Any, where: str) -> dict[str, tuple[int, ...]]:
    """Reads exponents by place, as recipe files and manifests write them.

    Raises:
        RecipeError: It is no table of texts, or a text is no row of exponents.
    """
    if not isinstance(table, dict):
        raise RecipeError(f"{where}: folds must be a table", remedy="write [folds]")
    found = {}
    for place, text in table.items():
        try:
            found[str(place)] = folds.parse(text)
        except (TypeError, ValueError) as e:
            raise RecipeError(
                f"{where}: folds.{place}: {e}", remedy="take it from a manifest, or leave it out"
            ) from e
    return found


def meet(recipe: Recipe, module: torch.nn.Module, where: str) -> QuantPlan:
    """Applies a recipe to every Linear and Embedding of a module.

    Args:
        recipe: What the user asked for.
        module: The authored module.
        where: Names the model in messages.

    Raises:
        RecipeError: The recipe names a layer or part that the model lacks, or a block size that
            does not divide a weight's input channels.
    """
    return apply(recipe, weights(module), where)


def apply(recipe: Recipe, weights: Sequence[WeightRule], where: str) -> QuantPlan:
    """Applies a recipe to weights, whatever their formats were.

    Args:
        recipe: What the user asked for.
        weights: Each use of a weight matrix.
        where: Names the model in messages.

    Raises:
        RecipeError: As `meet`.
    """
    count = 1 + max((w.layer for w in weights if w.layer is not None), default=-1)
    overrides = _resolve_layers(recipe, count, where)
    present = {w.part for w in weights}
    in_layers = {w.part for w in weights if w.layer is not None}
    for place, table, known in (
        ("", recipe.parts, present),
        *((f"layers.{i}.", table, in_layers) for i, table in recipe.layers.items()),
    ):
        for part in table:
            # A gated feed-forward has a gate, a sequential one has not; groups may name both.
            if part not in known and part != "gate":
                raise RecipeError(
                    f"recipe {recipe.name} names {place}{part}, which {where} lacks"
                    f" (it has {listing(sorted(known))})",
                    remedy=f"remove {place}{part} from the recipe",
                )
    rules = []
    for weight in weights:
        chosen = recipe.parts.get(weight.part, recipe.default)
        if weight.layer is not None and weight.part in overrides.get(weight.layer, {}):
            chosen = overrides[weight.layer][weight.part]
        rules.append(replace(weight, format=chosen))
    plan = QuantPlan(recipe.name, tuple(rules))
    check_blocks(plan)
    return plan


def growth_bytes(plan: QuantPlan) -> int:
    """Returns the bytes that a tied weight costs more because its two uses store it differently."""
    by_parameter: dict[str, dict[tuple[int, bool, int | None], int]] = {}
    for rule in plan.rules:
        size = (
            rule.format.size_bytes(rule.shape) if rule.format else 4 * rule.shape[0] * rule.shape[1]
        )
        stored = rule.format
        key = (stored.bits, stored.is_float, stored.block_size) if stored else (32, True, None)
        by_parameter.setdefault(rule.parameter, {})[key] = size
    return sum(sum(s.values()) - max(s.values()) for s in by_parameter.values())


def part_of(parameter: str, *, is_gated: bool) -> tuple[str, int | None]:
    """Returns the part and layer of a parameter of litert-torch's decoder."""
    match = _PARAMETER.fullmatch(parameter)
    if match:
        part = _BLOCK_PARTS.get(match["module"])
        if match["module"] == "ff.w1":
            part = "gate" if is_gated else "up"
        return part or parameter, int(match["layer"])
    top = {"tok_embedding.weight": "embedding", "lm_head.weight": "lm_head"}
    return top.get(parameter, parameter), None


def weights(module: torch.nn.Module) -> tuple[WeightRule, ...]:
    """Lists each use of a weight matrix, in float32."""
    import torch

    names = {id(p): n for n, p in module.named_parameters()}
    found: list[WeightRule] = []
    for path, child in module.named_modules():
        if not isinstance(child, torch.nn.Linear | torch.nn.Embedding):
            continue
        is_gated = hasattr(module.get_submodule(path.rpartition(".")[0]), "w3")
        part, layer = part_of(f"{path}.weight", is_gated=is_gated)
        embeds = isinstance(child, torch.nn.Embedding)
        operator: Operator = "EMBEDDING_LOOKUP" if embeds else "FULLY_CONNECTED"
        rows, columns = child.weight.shape
        # A tied head goes by the name of the embedding, under which it is stored.
        shape = (rows, columns)
        found.append(WeightRule(names[id(child.weight)], operator, part, layer, shape, None))
    return tuple(found)


def _resolve_layers(
    recipe: Recipe, count: int, where: str
) -> dict[int, Mapping[str, WeightFormat | None]]:
    resolved: dict[int, Mapping[str, WeightFormat | None]] = {}
    for index, table in sorted(recipe.layers.items()):
        layer = index + count if index < 0 else index
        if not 0 <= layer < count:
            raise RecipeError(
                f"recipe {recipe.name} names layer {index}, but {where} has {count} layers",
                remedy=f"name layers from 0 to {count - 1}, or from -{count} to -1",
            )
        resolved[layer] = {**resolved.get(layer, {}), **table}
    return resolved


def check_blocks(plan: QuantPlan) -> None:
    """Checks that each format's blocks fill the rows of its weight.

    Raises:
        RecipeError: Some do not.
    """
    misfits: dict[str, None] = {}
    for rule in plan.rules:
        block = rule.format.block_size if rule.format else None
        if block and rule.shape[1] % block:
            place = rule.part if rule.layer is None else f"layers.{rule.layer}.{rule.part}"
            misfits[f"{place} ({rule.shape[1]} input channels, blocks of {block})"] = None
    if misfits:
        raise RecipeError(
            f"recipe {plan.name}: the block size does not divide the input channels of"
            f" {listing(misfits)}",
            remedy="choose a smaller block, or a recipe file with another format for these parts",
        )


def _format(value: Any, where: str) -> WeightFormat | None:
    if isinstance(value, str):
        if value in FORMATS:
            return FORMATS[value]
        for pattern, reason in REFUSED:
            if pattern.fullmatch(value):
                raise RecipeError(f"{where}: {value} is refused: {reason}", remedy="choose another")
        guess = nearest(value, FORMATS)
    else:
        guess = None
    raise RecipeError(
        f"{where}: {value!r} is no format (there are {', '.join(FORMATS)})",
        remedy=f"did you mean {guess}?" if guess else "choose one of them",
    )


def _parts(
    table: Mapping[str, Any], where: str, others: tuple[str, ...] = ()
) -> dict[str, WeightFormat | None]:
    chosen: dict[str, WeightFormat | None] = {}
    for key in sorted(table, key=lambda k: k not in GROUPS):  # groups first: a part beats its group
        value = table[key]
        if key not in GROUPS and key not in PARTS:
            guess = nearest(key, [*PARTS, *GROUPS, *others])
            raise RecipeError(
                f"{where}: unknown key {key}",
                remedy=f"did you mean {guess}?" if guess else f"parts are {', '.join(PARTS)}",
            )
        for part in GROUPS.get(key, (key,)):
            chosen[part] = _format(value, f"{where}: {key}")
    return chosen


def _layer_indexes(key: str, path: Path) -> range:
    # No model has more layers, and a range is walked through.
    match = re.fullmatch(r"(-?[0-9]{1,4})|([0-9]{1,4})-([0-9]{1,4})", key)
    if not match or (match[2] and int(match[2]) > int(match[3])):
        raise RecipeError(
            f"{path}: layers.{key} is no layer",
            remedy='write [layers.0], [layers.-1] or [layers."2-5"]',
        )
    if match[1]:
        return range(int(match[1]), int(match[1]) + 1)
    return range(int(match[2]), int(match[3]) + 1)
