"""The licence that a published file stands under, and the texts that go along with it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgezoo_core import hub_cache, plugins, remote, targets
from edgezoo_core.cards import HUB_REPO
from edgezoo_core.errors import EdgezooError, PublishError
from edgezoo_core.publishing import licences
from edgezoo_core.publishing.licences import Licence
from edgezoo_core.publishing.upload import File
from edgezoo_core.types import Progress

logger = logging.getLogger(__name__)

#: What goes along with the weights if the source has it.
_LEGAL = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY)([._-][\w.-]*)?", re.ASCII | re.IGNORECASE)
#: A longer text is no licence.
_LONGEST_TEXT = 1 << 20


def find(
    manifest: Mapping[str, Any],
    *,
    named: str | None,
    is_accepted: bool,
    is_offline: bool,
    progress: Progress,
) -> tuple[Licence, list[File]]:
    """Returns the source's licence, and the texts that go along with it.

    Args:
        manifest: Of the file.
        named: The licence, as the user names it where the source does not.
        is_accepted: Whether the user answers for the licence's condition, and for the adapters'.
        is_offline: Whether the hub must not be asked: a family's card has to do, or nothing.
        progress: Told of each stage.

    Raises:
        PublishError: A licence forbids it, or the source states another than the user.
        EdgezooError: The hub cannot be asked.
    """
    checkpoint = manifest["checkpoint"]
    stated, legal = None, list(_legal_texts(Path(checkpoint["folder"] or "")))
    if checkpoint["repo"] and not is_offline:
        stated, legal = _ask(checkpoint["repo"], checkpoint["commit"], progress)
    licence = licences.find(stated)
    if licence.name == "unknown":
        licence = licences.find(_card_licence(manifest))
    if named:
        meant = licences.find(named)
        if licence.name not in ("unknown", meant.name):
            raise PublishError(
                f"the source's licence is {licence.name}, not {meant.name}",
                remedy="leave out --licence",
            )
        licence = meant
    if licence.name == "unknown" and checkpoint["repo"] and is_offline:
        logger.warning("the licence of %s is known once the hub is asked", checkpoint["repo"])
        return licence, legal
    licences.refuse(licence, is_accepted=is_accepted)
    if not is_offline and not is_accepted:
        _refuse_adapters(manifest, progress)
    if licence.condition:
        logger.warning("%s: %s (%s)", licence.name, licence.condition, licence.source)
    if licence.notice and not any(f.name.upper().startswith("NOTICE") for f in legal):
        legal.append(File("NOTICE", f"{licence.notice}\n".encode()))
    return licence, legal


def _refuse_adapters(manifest: Mapping[str, Any], progress: Progress) -> None:
    """Stops what the licence of an adapter from the hub does not let pass."""
    for record in manifest.get("adapters", ()):
        repo, at, commit = record["source"].partition("@")
        if at and HUB_REPO.fullmatch(repo):
            stated, _ = _ask(repo, commit, progress)
            if not licences.find(stated).is_open:
                raise PublishError(
                    f"the licence of the adapter {repo} is {stated}",
                    remedy="if it lets you publish what was merged, pass --accept-licence",
                )


def _legal_texts(folder: Path) -> Iterator[File]:
    if folder == Path() or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        is_text = _LEGAL.fullmatch(path.name) and path.is_file()
        if is_text and path.stat().st_size <= _LONGEST_TEXT:
            yield File(path.name, path.read_bytes())


def _ask(repo: str, commit: str, progress: Progress) -> tuple[str, list[File]]:
    found = remote.look(repo, commit, progress=progress)
    if found is None:
        raise hub_cache.not_cached(repo, commit)
    texts = [
        File(name, remote.fetch_text(found, name, progress=progress).read_bytes())
        for name in sorted(found.files)
        if found.size_bytes(name) <= _LONGEST_TEXT and _LEGAL.fullmatch(name)
    ]
    return found.license, texts


def _card_licence(manifest: Mapping[str, Any]) -> str | None:
    """Returns what the family's card says, if the source is the checkpoint of a card."""
    model_id = manifest["model"]["card_id"]
    if model_id is None:
        return None
    try:
        return targets.find_card(model_id, plugins.discover()).license
    except EdgezooError:
        return None
