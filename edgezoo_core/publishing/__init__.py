"""From a converted file to a repo of the hub: what is examined, and what is sent."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgezoo_core import artifact, contract, recipe_writing, text_sources
from edgezoo_core.artifact import BUNDLE_SUFFIX
from edgezoo_core.cards import HUB_REPO
from edgezoo_core.errors import EdgezooError, PublishError, TargetError
from edgezoo_core.publishing import card, legal, licences, speed, standing
from edgezoo_core.publishing.card import Facts
from edgezoo_core.publishing.licences import Licence
from edgezoo_core.publishing.speed import Described
from edgezoo_core.publishing.upload import README, File
from edgezoo_core.types import Progress, silent

logger = logging.getLogger(__name__)

#: Of the extra `convert`: for the certificate's bounds, the contract, the card.
_NEEDED = ("numpy", "litert_lm_builder", "jinja2")


@dataclass(frozen=True, slots=True)
class Decisions:
    """What only the user can decide.

    Attributes:
        licence: Name of the source's licence, where the source does not name it.
        is_licence_accepted: Whether the user answers for the licence's condition.
        base_model: Hub repo that a local folder descends from, for the card.
        benchmark: What `edgezoo bench --json` printed, for the card.
        is_uncertified: Whether a file may go out that has no certificate, or that LiteRT-LM would
            refuse.
    """

    licence: str | None = None
    is_licence_accepted: bool = False
    base_model: str | None = None
    benchmark: Path | None = None
    is_uncertified: bool = False


@dataclass(frozen=True, slots=True)
class Publication:
    """What is ready to be sent.

    Attributes:
        repo: Where to.
        files: In the order of their names.
        card: The text of README.md.
        licence: Of the source.
    """

    repo: str
    files: tuple[File, ...]
    card: str
    licence: Licence

    @property
    def message(self) -> str:
        """Of the commit."""
        models = [f.name for f in self.files if f.name.endswith((".tflite", BUNDLE_SUFFIX))]
        return f"Add {', '.join(models)}"


def prepare(
    path: Path,
    repo: str,
    decisions: Decisions | None = None,
    *,
    is_offline: bool = False,
    progress: Progress = silent,
) -> Publication:
    """Examines an artifact and writes its card. Nothing is sent.

    Args:
        path: A .tflite, which its bundle accompanies, or a .litertlm alone; with its manifest.
        repo: `org/name` that it is published to.
        decisions: Of the user.
        is_offline: Whether the hub must not be asked: for the licence, a family's card has to do.
        progress: Told of each stage.

    Raises:
        PublishError: It is not certified, LiteRT-LM would refuse it, or its licence forbids it.
        ArtifactError: There is no manifest, or a file is not what the manifest says.
        EdgezooError: The source's licence cannot be had.
    """
    decisions = decisions or Decisions()
    _refuse_core_alone()
    _refuse_names(repo, decisions)
    manifest = _manifest(path)
    progress("hashing the files")
    models = _models(path, manifest)
    digest = standing.model_sha256(path)
    found = standing.judge(manifest, digest)
    if found.fault and not decisions.is_uncertified:
        raise _uncertified(path, found)
    licence, notices = legal.find(
        manifest,
        named=decisions.licence,
        is_accepted=decisions.is_licence_accepted,
        is_offline=is_offline,
        progress=progress,
    )
    broken = _broken_rules(path, models, manifest, decisions, is_offline, progress)
    public = _public(manifest, found)
    recipe = recipe_writing.recipe_file(public)
    described = tuple(Described(f.name, f.size_bytes, f.sha256) for f in models)
    facts = Facts(
        name=repo.split("/")[1],
        repo=repo,
        manifest=public,
        manifest_name=artifact.manifest_path(path).name,
        files=described,
        digest=digest,
        licence=licence,
        base_model=decisions.base_model,
        fault=found.fault,
        contract_errors=broken,
        speed=speed.read(decisions.benchmark, described) if decisions.benchmark else None,
        recipe_file=recipe[0] if recipe else None,
    )
    return _publication(facts, [*models, *notices], recipe)


def _publication(
    facts: Facts, files: Sequence[File], recipe: tuple[str, str] | None
) -> Publication:
    """Writes what goes beside the models and the notices: manifest, card, recipe."""
    text = card.render(facts)
    written = {
        facts.manifest_name: json.dumps(facts.manifest, indent=2) + "\n",
        README: text,
        **dict([recipe] if recipe else []),
    }
    files = [*files, *(File(name, said.encode()) for name, said in written.items())]
    ordered = tuple(sorted(files, key=lambda f: f.name))
    return Publication(facts.repo, ordered, text, facts.licence)


def _uncertified(path: Path, found: standing.Standing) -> PublishError:
    return PublishError(
        f"{path} is not certified: {found.fault}",
        remedy=f"run: edgezoo verify {path.with_suffix('.tflite')} (--uncertified publishes it"
        " all the same, and its card says so)",
    )


def _manifest(path: Path) -> Mapping[str, Any]:
    """Returns an artifact's manifest, its source looked at: it may come from anybody."""
    manifest = artifact.read(path).manifest
    if manifest is None:
        raise PublishError(
            f"{path} has no manifest that says what it is",
            remedy="name a file that edgezoo converted, its manifest beside it",
        )
    try:
        card.source(manifest)
        artifact.portable(manifest)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise PublishError(
            f"the manifest of {path} does not say where it is from ({type(e).__name__}: {e})",
            remedy="convert the model again",
        ) from e
    return manifest


def _public(manifest: Mapping[str, Any], found: standing.Standing) -> dict[str, Any]:
    """Returns the manifest as it is published: no paths, and no certificate of something else."""
    kept = {key: value for key, value in manifest.items() if key != "verification"}
    if found.record is not None:
        kept["verification"] = found.record
    return artifact.portable(kept)


def _refuse_core_alone() -> None:
    if any(find_spec(name) is None for name in _NEEDED):
        raise PublishError(
            "publishing needs what converting needs, and that is not installed",
            remedy="run: pip install 'edgezoo-core[convert]'",
        )


def _refuse_names(repo: str, decisions: Decisions) -> None:
    for name in (repo, decisions.base_model):
        if name is not None and not HUB_REPO.fullmatch(name):
            raise TargetError(f"{name!r} is no repo of the hub", remedy="write org/name")
    if decisions.licence is not None and not licences.NAME.fullmatch(decisions.licence):
        raise PublishError(
            f"{decisions.licence!r} is no name of a licence",
            remedy="write it as the hub does: apache-2.0, mit, gemma",
        )


def _models(path: Path, manifest: Mapping[str, Any]) -> list[File]:
    """Returns the models to publish, each as the manifest describes it."""
    names = {BUNDLE_SUFFIX: "bundle"}
    records = {path: manifest[names.get(path.suffix, "artifact")]}
    if path.suffix != BUNDLE_SUFFIX and "bundle" in manifest:
        beside = path.parent / Path(manifest["bundle"]["file"]).name
        if beside.is_file():
            records[beside] = manifest["bundle"]
    files = []
    for model, record in records.items():
        file = File(model.name, model)
        if (file.name, file.sha256) != (record["file"], record["sha256"]):
            raise PublishError(
                f"{model} is not what its manifest describes: it was changed or renamed",
                remedy="convert the model again",
            )
        files.append(file)
    return files


def _broken_rules(
    path: Path,
    models: list[File],
    manifest: Mapping[str, Any],
    decisions: Decisions,
    is_offline: bool,
    progress: Progress,
) -> list[str]:
    texts = _texts(models, manifest, is_offline=is_offline, progress=progress)
    reports = [contract.check(path.with_name(f.name), texts, progress) for f in models]
    errors = [finding for report in reports for finding in report.errors]
    if errors and not decisions.is_uncertified:
        raise PublishError(
            f"LiteRT-LM would refuse {path}, or talk garbage ({errors[0].rule}: {errors[0].found})",
            remedy=f"run: edgezoo check {path} (--uncertified publishes it all the"
            " same, and its card says so)",
        )
    return sorted({finding.rule for finding in errors})


def _texts(
    models: list[File], manifest: Mapping[str, Any], *, is_offline: bool, progress: Progress
) -> Path | None:
    """Returns the folder with the source's texts; None if it is not at hand."""
    if is_offline and manifest["checkpoint"]["repo"]:
        return None
    described = artifact.Artifact(Path(models[0].name), manifest)
    try:
        return text_sources.known_texts(described, progress)
    except EdgezooError as e:
        logger.warning("%s: what needs the source is not checked", e.message)
        return None
