"""inspect: what is in a .tflite or a .litertlm."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgezoo_core.cli.console import Stages, working
from edgezoo_core.cli.options import json_option, print_json, table, verbose_option
from edgezoo_core.errors import ArtifactError, plain
from edgezoo_core.errors import listing as shortened

if TYPE_CHECKING:
    from edgezoo_core.decoder import EntryPoint
    from edgezoo_core.inspection import Account, BundleAccount, Constant, Inspection

_Row = tuple[str, ...]


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--graph", is_flag=True, help="Open it in Model Explorer, where that is installed.")
@json_option
@verbose_option
def inspect_command(file: Path, graph: bool, as_json: bool, verbose: bool) -> None:
    """Show what is in FILE, a .tflite or .litertlm: signatures, operators, weights, bytes.

    No weight is read, so a file of any size takes seconds.
    """
    with working(verbose=verbose) as stages:
        stages("reading the tables")
        from edgezoo_core import inspection

        found = inspection.inspect(file)
        stages.done()
    if as_json:
        print_json(found.to_json())
    else:
        for line in _lines(found):
            click.echo(line)
    if graph:
        _open_graph(found)


def _lines(found: Inspection) -> Iterator[str]:
    yield f"file            {plain(str(found.path))}"
    yield f"size            {_size(found.size_bytes)} ({found.size_bytes:,} bytes)"
    yield f"recipe          {plain(found.recipe or 'no manifest tells')}"
    if found.bundle:
        yield from _bundle(found.bundle)
    for model in found.models:
        if model.section is not None:
            kind = plain(model.model_type or "no type")
            yield f"\n== section {model.section}: {kind}, {_size(model.bytes.total)}"
        yield "\n" + table(
            list(_signatures(model)), ("SIGNATURE", "WAY", "TENSOR", "DTYPE", "SHAPE")
        )
        yield "\n" + _operators(model)
        header = ("PART", "LAYERS", "FORMAT", "STORED", "SHAPE", "COUNT", "SIZE", "SCALES")
        yield "\n" + table(list(_weights(model)), header)
        yield "\n" + table(list(_layers(model)), ("LAYERS", "TENSORS", "SIZE OF EACH"))
        rows: list[_Row] = [(d, str(n), _size(size)) for d, (n, size) in model.by_dtype().items()]
        yield "\n" + table(rows, ("DTYPE", "CONSTANTS", "SIZE"))
        yield "\n" + table(list(_bytes(model)), ("BYTES OF", "SIZE", "EXACTLY", "SHARE"))
    for note in found.notes:
        yield f"\nNote: {plain(note)}"


def _bundle(bundle: BundleAccount) -> Iterator[str]:
    if bundle.metadata:
        start = "none" if bundle.start_token is None else _token(bundle.start_token)
        stop = shortened(_token(t) for t in bundle.stop_tokens) or "none"
        yield f"start token     {start}"
        yield f"stop tokens     {stop}"
        yield f"prompts         {bundle.prompts}"
        yield f"tokens at most  {bundle.max_num_tokens or 'not said'}"
    rows: list[_Row] = [
        (str(i), plain(s.kind), plain(s.model_type or "-"), _size(s.size_bytes))
        for i, s in enumerate(bundle.sections)
    ]
    rows += [("-", "header", "-", _size(bundle.header_bytes))]
    rows += [("-", "padding", "-", _size(bundle.padding_bytes))]
    yield "\n" + table(rows, ("SECTION", "KIND", "FOR", "SIZE"))


def _token(token: tuple[int, ...] | str) -> str:
    return repr(token) if isinstance(token, str) else " ".join(map(str, token))


def _signatures(model: Account) -> Iterator[_Row]:
    for name, entry in model.signatures.items():
        shown = plain(name)
        for row in _tensors(entry):
            yield (shown, *row)
            shown = ""


def _tensors(entry: EntryPoint) -> Iterator[_Row]:
    """Yields way, name, dtype and shape; tensors that differ by a number alone make one row."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    ways: dict[tuple[str, str, str], list[str]] = {}
    for way, tensors in (("in", entry.inputs), ("out", entry.outputs)):
        for name, spec in tensors.items():
            key = (re.sub(r"\d+$", "", name), spec.dtype, str(list(spec.shape)))
            if name not in groups.setdefault(key, []):
                groups[key].append(name)
            if way not in ways.setdefault(key, []):
                ways[key].append(way)
    for (stem, dtype, shape), names in groups.items():
        numbers = [n.removeprefix(stem) for n in names]
        label = names[0]
        if len(names) > 1:
            label = stem + _runs(int(n) for n in numbers if n)
        yield ", ".join(ways[stem, dtype, shape]), plain(label), dtype, shape


def _operators(model: Account) -> str:
    columns = [g for g in model.subgraphs if g.signature]
    inner = [g for g in model.subgraphs if not g.signature]
    rows = []
    for name, total in model.operators().items():
        counts = [g.operators.get(name, 0) for g in columns]
        rest = sum(g.operators.get(name, 0) for g in inner)
        rows.append((plain(name), str(total), *map(str, counts), *([str(rest)] if inner else [])))
    header = ["OPERATOR", "ALL", *(plain(g.signature or "") for g in columns)]
    return table(rows, tuple(header + ([f"IN {len(inner)} OTHER GRAPHS"] if inner else [])))


def _weights(model: Account) -> Iterator[_Row]:
    groups: dict[_Row, list[Constant]] = {}
    for weight in model.weights:
        parts = dict.fromkeys(p.part or "?" for p in weight.places)
        stored = f"{weight.dtype}, {weight.granularity}" if weight.granularity else weight.dtype
        key = (", ".join(parts) or "?", weight.format, stored, str(list(weight.shape)))
        groups.setdefault(key, []).append(weight)

    def place(group: list[Constant]) -> tuple[int, str]:
        layers = [p.layer for w in group for p in w.places if p.layer is not None]
        return (min(layers, default=-1), str(group[0].places[:1]))

    for (part, fmt, stored, shape), group in sorted(groups.items(), key=lambda g: place(g[1])):
        layers = _runs(p.layer for w in group for p in w.places if p.layer is not None)
        size, scales = sum(w.size_bytes for w in group), sum(w.scale_bytes for w in group)
        names = (plain(part), layers or "-", plain(fmt), stored, shape)
        yield (*names, str(len(group)), _size(size), _size(scales))


def _layers(model: Account) -> Iterator[_Row]:
    groups: dict[tuple[int, int], list[int]] = {}
    for layer, sums in model.by_layer().items():
        groups.setdefault(sums, []).append(layer)
    for (count, size), layers in groups.items():
        yield _runs(layers), str(count), _size(size)


def _bytes(model: Account) -> Iterator[_Row]:
    found = model.bytes
    for name in ("weights", "scales", "constants", "graph", "padding", "total"):
        size = getattr(found, name)
        yield name, _size(size), f"{size:,}", f"{size / max(found.total, 1):.1%}"


def _runs(layers: Iterable[int | None]) -> str:
    from edgezoo_core.inspection.places import runs

    return runs([layer for layer in layers if layer is not None])


def _size(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def _open_graph(found: Inspection) -> None:
    try:
        explorer = importlib.import_module("model_explorer")
    except ImportError as e:
        raise ArtifactError(
            "--graph needs Model Explorer, which is not installed",
            remedy="run `pip install ai-edge-model-explorer`",
        ) from e
    with working(verbose=True) as stages, _model_file(found, stages) as path:
        stages.done()
        with suppress(KeyboardInterrupt):
            explorer.visualize(str(path))  # serves until Ctrl-C


@contextmanager
def _model_file(found: Inspection, stages: Stages) -> Iterator[Path]:
    """Gives the model as a file of its own: out of a bundle it is copied for as long as needed."""
    if found.bundle is None:
        yield found.path
        return
    import tempfile

    from edgezoo_core import inspection

    stages("copying the model out of the bundle")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / found.path.with_suffix(".tflite").name
        inspection.extract_model(found, path)
        yield path
