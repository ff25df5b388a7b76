"""The model card of a published artifact: what its manifest says, for people and for the hub."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core.artifact import BUNDLE_SUFFIX
from edgezoo_core.cards import HUB_REPO
from edgezoo_core.errors import PublishError, plain
from edgezoo_core.publishing import commands
from edgezoo_core.publishing.licences import Licence
from edgezoo_core.publishing.speed import Described, Speed

#: By this a later `edgezoo publish` knows its own README. A comment: it does not show.
MARK = "<!-- made by edgezoo publish -->"

_TEMPLATES = Path(__file__).with_name("templates")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card says.

    Attributes:
        name: Its heading.
        repo: Where it is published.
        manifest: Without paths of the machine (see `artifact.portable`).
        manifest_name: Its file.
        files: The models.
        digest: sha256 of the model, the one in the bundle if there is only that.
        licence: Of the source.
        base_model: The hub repo that the user names as the base, or None.
        fault: Why there is no certificate that stands; empty if there is.
        contract_errors: Rules of the runtime that the files break.
        speed: What was measured, if it was.
        recipe_file: Name of the recipe file that is published, too, or None.
    """

    name: str
    repo: str
    manifest: Mapping[str, Any]
    manifest_name: str
    files: Sequence[Described]
    digest: str
    licence: Licence
    base_model: str | None
    fault: str
    contract_errors: Sequence[str]
    speed: Speed | None
    recipe_file: str | None


def render(facts: Facts) -> str:
    """Returns the card: front matter for the hub, and Markdown.

    Whatever comes from a manifest or a source stands in code spans, where neither Markdown nor
    HTML means anything; the front matter is written by huggingface_hub.

    Raises:
        PublishError: The manifest does not say what a card needs.
    """
    try:
        return f"---\n{_front_matter(facts)}\n---\n{_body(facts)}"
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise PublishError(
            f"{facts.manifest_name} does not say what a card needs ({type(e).__name__}: {e})",
            remedy="convert the model again",
        ) from e


def code(value: Any) -> str:
    """Returns a text as a code span of Markdown that also may stand in a table."""
    text = plain(str(value)).strip() or " "
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text}{space}{ticks}".replace("|", "\\|")


def _front_matter(facts: Facts) -> str:
    from huggingface_hub import ModelCardData

    has_bundle = _has_bundle(facts)
    licence = facts.licence
    named: dict[str, Any] = {"license": licence.name}
    if not licence.is_known:
        named = {"license": "other", "license_name": licence.name}
    base = source(facts.manifest)["repo"] or facts.base_model
    data = ModelCardData(
        **named,
        base_model=base,
        # Of an unknown base nothing can be said.
        base_model_relation="quantized" if base else None,
        library_name="litert-lm" if has_bundle else None,
        pipeline_tag="text-generation",
        tags=["edgezoo", "litert", "on-device", *(() if has_bundle else ("tflite",))],
    )
    return data.to_yaml().strip()


def _body(facts: Facts) -> str:
    manifest = facts.manifest
    weights = manifest["recipe"]["weights"]
    recipe = facts.recipe_file or manifest["recipe"]["name"]
    run = next((f.name for f in facts.files if f.name.endswith(BUNDLE_SUFFIX)), facts.files[0].name)
    values = {
        "mark": MARK,
        "name": facts.name,
        "source": source(manifest),
        "base_model": facts.base_model,
        "base_url": f"{_HUB}/{facts.base_model}",
        "adapters": manifest.get("adapters", ()),
        "files": facts.files,
        "licence": facts.licence,
        "run": "\n".join(
            commands.text(c)
            for c in (
                ["hf", "download", facts.repo, "--local-dir", facts.name],
                ["edgezoo", "run", f"{facts.name}/{run}"],
            )
        ),
        "has_bundle": _has_bundle(facts),
        "signatures": [s["name"] for s in manifest["signatures"]],
        "options": manifest["options"],
        "recipe": manifest["recipe"]["name"],
        "recipe_file": facts.recipe_file,
        "formats": Counter(weights.values()).most_common(),
        "fault": facts.fault,
        "digest": facts.digest,
        **_certificate(manifest.get("verification")),
        "contract_errors": facts.contract_errors,
        "speed": facts.speed,
        "install": commands.text(commands.install(manifest)),
        "convert": commands.text(commands.convert(manifest, recipe)),
        "reproduce": commands.text(["edgezoo", "reproduce", facts.manifest_name]),
        "manifest": facts.manifest_name,
    }
    text: str = _template().render(values)
    return re.sub(r"\n{3,}", "\n\n", text)


def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - Markdown: what comes from elsewhere passes `code`
    )
    environment.filters["code"] = code
    return environment.get_template("card.md.j2")


def _has_bundle(facts: Facts) -> bool:
    return any(f.name.endswith(BUNDLE_SUFFIX) for f in facts.files)


def source(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a card says of the source: `repo`, `commit` and `url`, or `folder`.

    Raises:
        ValueError: What is said to be from the hub is no repo at a commit.
        AttributeError, KeyError, TypeError: The manifest says nothing of it.
    """
    checkpoint = manifest["checkpoint"]
    repo, commit = checkpoint["repo"], checkpoint["commit"]
    if not repo:
        return {"repo": None, "folder": checkpoint["folder"].removeprefix("./")}
    # It becomes part of a link.
    if not HUB_REPO.fullmatch(repo) or not _COMMIT.fullmatch(commit):
        raise ValueError(f"{repo!r} at {commit!r} is no repo at a commit")
    return {"repo": repo, "commit": commit, "url": f"{_HUB}/{repo}/tree/{commit}"}


def _certificate(found: Any) -> dict[str, Any]:
    if found is None:
        return {"certificate": [], "reference": None, "loss": None}
    from edgezoo_core.verification.report import nearness

    structure, weights, outputs = (found[n] for n in ("structure", "weights", "outputs"))
    graph, allowed = "not examined", ""
    if structure:
        graph = f"float32 graph differs by {structure['relative_difference']:.1e} of the norm"
        allowed = f"{structure['bound']:.0e}"
    is_compensated = bool(weights.get("is_compensated"))
    rows, loss = nearness(weights["largest"], is_compensated=is_compensated), outputs["loss"]
    said = f"mean KL {loss['mean_kl']:.2e} nats, 99th percentile {loss['p99_kl']:.2e}"
    parts = [
        ("structure", graph, allowed),
        ("weights", f"{int(weights['matrices'])} tensors, {rows}", "1"),
        ("outputs", said, f"{outputs['max_kl']:.3g}"),
    ]
    reference = {
        "name": found["reference"],
        **{key: found[key] for key in ("tokens", "text", "runtime")},
    }
    return {"certificate": parts, "reference": reference, "loss": loss}
