"""Options that shape a conversion, for the commands that make one or plan one."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any, cast, get_args

import click

from edgezoo_core import recipe as recipes
from edgezoo_core.cli.options import F
from edgezoo_core.shapes import KvLayout, Shapes

_OPTIONS = (
    click.option(
        "--recipe",
        metavar="NAME|FILE",
        help=f"A recipe ({', '.join(recipes.RECIPES)}), or a recipe file that ends in .toml.",
    ),
    click.option(
        "--prefill",
        "prefill_lengths",
        type=click.IntRange(min=1),
        multiple=True,
        help="A prefill length in tokens; repeat for several.",
    ),
    click.option(
        "--kv-cache",
        "kv_cache_length",
        type=click.IntRange(min=2),
        help="Slots of the KV cache.",
    ),
    click.option(
        "--kv-layout", type=click.Choice(get_args(KvLayout)), help="Layout of the KV cache."
    ),
    click.option(
        "--mask-as-input/--mask-built-in",
        default=None,
        help="Where the attention mask comes from.",
    ),
    click.option(
        "--output",
        type=click.Path(path_type=Path),
        default=Path(),
        help="A folder, or a path that ends in .tflite.  [default: this folder]",
    ),
    click.option(
        "--adapter",
        "adapters",
        metavar="REPO|FOLDER[=WEIGHT]",
        multiple=True,
        help="A PEFT LoRA adapter to merge; repeat for several.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["streaming", "litert"]),
        default="streaming",
        show_default=True,
        help="`litert`: litert-torch's own path, which holds the model in memory.",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        help="Workers.  [default: what cores and memory allow]",
    ),
    click.option(
        "--bundle/--no-bundle",
        "with_bundle",
        default=True,
        help="Make a .litertlm, too, if the source has a tokenizer.  [default: bundle]",
    ),
    click.option(
        "--calibration",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="A text for recipes that calibrate (int8, int4).  [default: a carried one]",
    ),
    click.option("--no-cache", is_flag=True, help="Neither use nor keep compiled graphs."),
)
#: Options that are handed on as they are.
_SHARED = (
    "recipe",
    "output",
    "adapters",
    "engine",
    "jobs",
    "with_bundle",
    "calibration",
    "revision",
    "family",
    "card",
)


def conversion_options(command: F) -> F:
    """Adds what shapes a conversion: recipe, shapes, output, adapters, engine, and the rest.

    The command gets these, and those of `source_options`, as one argument `wanted`: the keyword
    arguments that `edgezoo_core.zoo.convert` and `edgezoo_core.planning.plan` share.
    """

    @wraps(command)
    def collecting(
        *arguments: Any,
        prefill_lengths: tuple[int, ...],
        kv_cache_length: int | None,
        kv_layout: KvLayout | None,
        mask_as_input: bool | None,
        no_cache: bool,
        **options: Any,
    ) -> Any:
        shapes = Shapes(prefill_lengths or None, kv_cache_length, kv_layout, mask_as_input)
        wanted = {name: options.pop(name) for name in _SHARED}
        wanted |= {"shapes": shapes, "use_cache": not no_cache}
        return command(*arguments, wanted=wanted, **options)

    for option in reversed(_OPTIONS):
        collecting = option(collecting)
    return cast("F", collecting)
