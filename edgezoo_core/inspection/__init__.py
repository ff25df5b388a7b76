"""What is in a .tflite or a .litertlm, whoever made it: read from its tables, no weight touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgezoo_core import artifact, decoder
from edgezoo_core.bundle import sections
from edgezoo_core.bundle.sections import Contents
from edgezoo_core.errors import ArtifactError, listing
from edgezoo_core.inspection.flatbuffer import Reader
from edgezoo_core.inspection.values import (
    Account,
    BundleAccount,
    Bytes,
    Constant,
    Inspection,
    SectionAccount,
    Subgraph,
)

_CHUNK = 1 << 22


def inspect(path: Path) -> Inspection:
    """Says what is in a file.

    Args:
        path: A .tflite or a .litertlm.

    Raises:
        ArtifactError: It is neither, or damaged.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", remedy="check the path")
    recipe, note = _recipe(path)
    rules: Mapping[str, str] = recipe.get("weights", {})
    size = path.stat().st_size
    bundle = None
    if sections.is_bundle(path):
        contents = sections.open_bundle(path)
        bundle = _bundle(contents)
        models = tuple(
            _model(path, s.begin, s.size_bytes, rules, s.index, s.model_type)
            for s in contents.of_kind(sections.MODEL)
        )
    else:
        models = (_model(path, 0, size, rules),)
    notes = [note] if note else []
    notes += [n for m in models for n in _notes(m, rules)]
    return Inspection(path, size, recipe.get("name"), models, bundle, tuple(notes))


def extract_model(found: Inspection, output: Path) -> None:
    """Copies the first model of a bundle to a file of its own; the language model if it is typed.

    Args:
        found: What `inspect` said of the bundle.
        output: Where it goes.

    Raises:
        ArtifactError: There is no model in it.
    """
    contents = sections.open_bundle(found.path)
    models = contents.models() or contents.of_kind(sections.MODEL)
    if not models:
        raise ArtifactError(f"{found.path} has no model", remedy="name a bundle with a model")
    with found.path.open("rb") as source, output.open("wb") as target:
        source.seek(models[0].begin)
        left = models[0].size_bytes
        while left and (chunk := source.read(min(left, _CHUNK))):
            target.write(chunk)
            left -= len(chunk)


def _model(
    path: Path,
    begin: int,
    size: int,
    rules: Mapping[str, str],
    section: int | None = None,
    model_type: str | None = None,
) -> Account:
    try:
        with decoder.mapped(path, begin) as model:
            return Reader(model, size, rules).account(section, model_type)
    except ArtifactError as e:
        where = "" if section is None else f", section {section}"
        if str(path) in e.message:
            raise
        raise ArtifactError(f"{path}{where}: {e.message}", remedy=e.remedy) from e


def _recipe(path: Path) -> tuple[Mapping[str, Any], str | None]:
    """Returns what a manifest says of the recipe, and a note if it is another file's."""
    beside = artifact.manifest_path(path)
    if not beside.is_file():
        return {}, None
    foreign = f"{beside.name} is of another file, and was not read"
    try:
        manifest = artifact.read_manifest(beside)
        record = manifest["bundle" if sections.is_bundle(path) else "artifact"]
        is_its_own = artifact.is_of(manifest, record, path)
        recipe = manifest["recipe"]
        return ({}, foreign) if not is_its_own else (recipe, None)
    except (OSError, KeyError, ArtifactError):
        return {}, foreign


def _notes(account: Account, rules: Mapping[str, str]) -> list[str]:
    where = "" if account.section is None else f"section {account.section}: "
    unplaced = sum(not w.places for w in account.weights)
    notes = []
    if unplaced:
        notes.append(
            f"{where}no name tells where {unplaced} of {len(account.weights)} weights belong;"
            " they are grouped by shape"
        )
    found = {str(p) for w in account.weights for p in w.places}
    missing = sorted(set(rules) - found) if account.weights else []
    if missing:
        notes.append(f"{where}the manifest names weights that no name here tells of:"
                     f" {listing(missing)}")  # fmt: skip
    return notes


def _bundle(contents: Contents) -> BundleAccount:
    found = contents.sections
    begin = min((s.begin for s in found), default=contents.path.stat().st_size)
    used = begin + sum(s.size_bytes for s in found)
    message = contents.message(sections.LLM_METADATA)
    start = message.start_token if message and message.HasField("start_token") else None
    return BundleAccount(
        tuple(SectionAccount(s.kind, s.model_type, s.size_bytes) for s in found),
        header_bytes=begin,
        padding_bytes=contents.path.stat().st_size - used,
        metadata=message is not None,
        start_token=_token(start) if start else None,
        stop_tokens=tuple(_token(t) for t in message.stop_tokens) if message else (),
        prompts=_prompts(message),
        max_num_tokens=message.max_num_tokens if message else 0,
    )


def _token(union: Any) -> tuple[int, ...] | str:
    """Returns the ids of a token, or its text where it is given as that."""
    if union.WhichOneof("token_union") == "token_str":
        return str(union.token_str)
    return tuple(union.token_ids.ids)


def _prompts(message: Any | None) -> str:
    found = []
    if message is not None and message.jinja_prompt_template:
        found.append("jinja")
    if message is not None and message.HasField("prompt_templates"):
        found.append("affixes")
    return " and ".join(found) or "none"


__all__ = [
    "Account",
    "BundleAccount",
    "Bytes",
    "Constant",
    "Inspection",
    "SectionAccount",
    "Subgraph",
    "extract_model",
    "inspect",
]
