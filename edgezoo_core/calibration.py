"""A recipe that is to be smoothed becomes one that says what it folds."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core.cache import Cache
from edgezoo_core.compiler import open_cache, versions, workers
from edgezoo_core.compiler.job import Job, formats_to_json
from edgezoo_core.errors import CacheError
from edgezoo_core.smoothing import passage
from edgezoo_core.sources import Source
from edgezoo_core.types import Progress, Recipe, silent

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet

logger = logging.getLogger(__name__)

_FOLDS = "folds.json"


def calibrate(
    job: Job,
    source: Source,
    adapters: AdapterSet | None,
    text: Path | None = None,
    *,
    use_cache: bool = True,
    progress: Progress = silent,
) -> tuple[Recipe, int]:
    """Returns the job's recipe with what it folds, and the worker's peak memory in bytes.

    Args:
        job: What is converted, with a recipe that is to be smoothed.
        source: Its checkpoint.
        adapters: What is merged into it.
        text: A text file to calibrate on in place of the carried one.
        use_cache: Whether what was chosen is kept, and used again.
        progress: Told of each stage.

    Raises:
        CalibrationError: The text cannot be used.
        EdgezooError: The model cannot be run.
    """
    read = passage.read(text)
    progress("calibrating")
    request = {
        "job": job.to_json(),
        "adapters": adapters.to_json() if adapters else [],
        "text": read,
    }
    parts = _parts(job, source, adapters, read, progress)
    try:
        with open_cache(is_kept=use_cache) as cache:
            found, peak = _kept(cache, parts, request, progress)
    except CacheError as e:
        logger.warning("%s; calibrating without the cache", e.message)
        found, peak = _chosen(request, progress)
    if not found["folds"]:
        logger.warning(
            "recipe %s: nothing is folded, since nothing would be gained, or family %s declares no"
            " folds",
            job.recipe.name,
            job.model.family,
        )
    exponents = {place: tuple(values) for place, values in found["folds"].items()}
    return replace(job.recipe, is_smoothed=False, folds=exponents), peak


def _chosen(request: Mapping[str, Any], progress: Progress) -> tuple[Mapping[str, Any], int]:
    (answer,) = workers.run("smooth", [request], progress)
    return answer.result, answer.peak_memory_bytes


def _kept(
    cache: Cache, parts: Mapping[str, Any], request: Mapping[str, Any], progress: Progress
) -> tuple[Mapping[str, Any], int]:
    entry, peak = cache.get("calibration", parts), 0
    if entry is None:
        with cache.adding("calibration", parts) as adding:
            found, peak = _chosen(request, progress)
            name = request["job"]["model"]["source"]
            adding.about = {"title": f"{name}, {parts['recipe']['name']}"}
            (adding.folder / _FOLDS).write_text(json.dumps(found), encoding="utf-8")
        entry = adding.entry
    try:
        return json.loads(entry.path(_FOLDS).read_text(encoding="utf-8")), peak
    except FileNotFoundError as e:  # another process cleared the cache just now
        raise CacheError(f"{e.filename} is gone", remedy="convert once more") from e


def _parts(
    job: Job, source: Source, adapters: AdapterSet | None, text: str, progress: Progress
) -> dict[str, Any]:
    """Returns all that the choice follows from."""
    return {
        **versions.identity(source.plugin),
        "model": {"family": job.model.family, "card": job.model.card_id},
        "config": dict(job.config),
        "recipe": formats_to_json(job.recipe),
        "files": [[f.name, f.sha256] for f in source.checkpoint.hash_files(progress)],
        "adapters": adapters.record() if adapters else [],
        "text": hashlib.sha256(text.encode()).hexdigest(),
    }
