"""A repo of the hub without its weights: what the hub says, small texts, and headers by ranges.

The headers go through the parser of local files, not the client's: what a stranger's file may hold
is decided in one place, and a file that is cut short is seen before it is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from edgezoo_core import checkpoint as checkpoints
from edgezoo_core import hub, hub_cache, hub_session
from edgezoo_core.checkpoint import SAFETENSORS_INDEX, TEXT_FILES, Checkpoint
from edgezoo_core.errors import CheckpointError, listing
from edgezoo_core.hub_errors import explained
from edgezoo_core.hub_repo import RemoteRepo
from edgezoo_core.tensor_files import (
    PREFIX_BYTES,
    StoredTensor,
    header_length,
    parse_safetensors,
)
from edgezoo_core.types import Progress, silent

CONFIG = "config.json"
#: First bytes of a weight file that are asked for; most headers are shorter.
FIRST_BYTES = 1 << 16
#: Longest config or index that is fetched.
_LONGEST_TEXT_BYTES = 1 << 26
#: Longest header that is fetched: a hundred thousand tensors.
_LONGEST_HEADER_BYTES = 1 << 24
#: Most files whose headers are fetched.
_MOST_FILES = 1000
#: Files whose headers are fetched at the same time.
_AT_A_TIME = 8


class UnreadableAfarError(CheckpointError):
    """The weights are in files whose headers cannot be read afar."""


def look(repo: str, revision: str, *, progress: Progress = silent) -> RemoteRepo | None:
    """Asks the hub about a repo; None if it does not answer and the cache has a copy.

    Raises:
        CheckpointError: The repo or the revision is missing, the token is wrong, or the hub does
            not answer and there is no copy.
    """
    return hub.ask(
        repo,
        revision,
        progress=progress,
        has_copy=lambda: hub_cache.cached(repo, revision) is not None,
    )


def read_config(found: RemoteRepo, *, progress: Progress = silent) -> Mapping[str, Any] | None:
    """Fetches and reads config.json; None if the repo has none.

    Raises:
        CheckpointError: It cannot be fetched, or is no JSON object.
        GatedError: The repo is gated and this user has no access.
    """
    if CONFIG not in found.files:
        return None
    return checkpoints.read_config(fetch_text(found, CONFIG, progress=progress).parent)


def weight_files(found: RemoteRepo) -> tuple[str, ...]:
    """Returns the names of the weight files, as far as the file list tells them.

    Raises:
        CheckpointError: There are none, or several without an index.
    """
    try:
        index, files = checkpoints.weight_files(found.files)
    except CheckpointError as e:
        raise CheckpointError(f"{found}: {e.message}", remedy=e.remedy) from e
    if index is None:
        return files
    suffixes = (".safetensors",) if index == SAFETENSORS_INDEX else checkpoints.PYTORCH_SUFFIXES
    return tuple(
        n
        for n in sorted(found.files)
        if n.endswith(suffixes) and "/" not in n and not n.startswith(checkpoints.NOT_WEIGHTS)
    )


def open_headers(
    found: RemoteRepo, config: Mapping[str, Any] | None, *, progress: Progress = silent
) -> Checkpoint:
    """Reads names, shapes and dtypes of all tensors; their values are not here.

    Args:
        found: What the hub says.
        config: Its config.json.
        progress: Told of each stage.

    Raises:
        CheckpointError: The weights are missing, a header is damaged, the index names what is not
            there, or the hub cannot be reached.
        UnreadableAfarError: They are PyTorch files.
    """
    try:
        index, files = checkpoints.weight_files(found.files)
    except CheckpointError as e:
        raise CheckpointError(f"{found}: {e.message}", remedy=e.remedy) from e
    if index not in (None, SAFETENSORS_INDEX) or not all(f.endswith(".safetensors") for f in files):
        raise UnreadableAfarError(
            f"{found.repo} has no safetensors, and headers of other files cannot be read afar",
            remedy="download the checkpoint and name its folder",
        )
    named: Mapping[str, str] = {}
    if index:
        named = checkpoints.index_shards(fetch_text(found, index, progress=progress))
        files = tuple(sorted(set(named.values())))
    stage = "reading the headers of the weights"
    progress(stage)
    with explained(found.repo, found.revision):
        tensors = hub_session.patiently(lambda: _headers(found, index, files), stage, progress)
    if index and named.keys() != tensors.keys():
        differing = sorted(named.keys() ^ tensors.keys())
        raise CheckpointError(
            f"{found}: {index} and the weight files do not agree on {listing(differing)}",
            remedy="report it to the repo's owner, or pass another --revision",
        )
    texts = sorted(n for n in found.files if n in TEXT_FILES or n == CONFIG)
    return Checkpoint(
        source=str(found),
        folder=Path(),
        config=config,
        tensors=tensors,
        files=(*texts, *([index] if index else []), *files),
    )


def fetch_text(found: RemoteRepo, name: str, *, progress: Progress = silent) -> Path:
    """Fetches a small file through the client's cache.

    Raises:
        CheckpointError: It cannot be fetched, or is too large to be a text.
        GatedError: The repo is gated and this user has no access.
    """
    size = found.size_bytes(name)
    if size > _LONGEST_TEXT_BYTES:
        raise CheckpointError(
            f"{found}: {name} has {size} bytes",
            remedy="do not use this checkpoint: no model needs such a file",
        )
    return hub.fetch_file(found, name, progress=progress)


def _headers(
    found: RemoteRepo, index: str | None, files: tuple[str, ...]
) -> dict[str, StoredTensor]:
    absent = [f for f in files if f not in found.files]
    if absent:
        raise CheckpointError(
            f"{found}: {index} names {listing(absent)}, which the repo lacks",
            remedy="report it to the repo's owner, or pass another --revision",
        )
    if len(files) > _MOST_FILES:
        raise CheckpointError(
            f"{found}: {len(files)} weight files, more than {_MOST_FILES}",
            remedy="download the checkpoint and name its folder",
        )
    tensors: dict[str, StoredTensor] = {}
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for file, held in zip(files, pool.map(lambda f: _header(found, f), files), strict=True):
            if twice := tensors.keys() & held.keys():
                raise CheckpointError(
                    f"{found}: {file} holds tensors of another file: {listing(sorted(twice))}",
                    remedy="report it to the repo's owner, or pass another --revision",
                )
            tensors.update(held)
    return tensors


def _header(found: RemoteRepo, file: str) -> dict[str, StoredTensor]:
    size = found.size_bytes(file)

    def refuse(name: str) -> NoReturn:
        raise CheckpointError(
            f"{found}: {name} was not downloaded", remedy="download the checkpoint first"
        )

    try:
        first = _range(found, file, 0, min(size, FIRST_BYTES))
        length = header_length(first[:PREFIX_BYTES], size)
        if length > _LONGEST_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        end = PREFIX_BYTES + length
        if end > len(first):
            first += _range(found, file, len(first), end)
        return parse_safetensors(first[PREFIX_BYTES:end], size, file, refuse)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(
            f"{found}: {file} is no readable safetensors file: {e}",
            remedy="report it to the repo's owner, or choose another revision",
        ) from e


def _range(found: RemoteRepo, file: str, start: int, stop: int) -> bytes:
    """Fetches bytes `start` to `stop` of a file, and never more, whatever the server sends."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    if start == stop:
        return b""
    url = hf_hub_url(found.repo, file, revision=found.commit)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
    headers["Accept-Encoding"] = "identity"
    content = bytearray()
    request = get_session().stream("GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT)
    with request as response:
        hf_raise_for_status(response)
        # A server that knows no ranges sends the file from its beginning.
        skipped = start if response.status_code == 200 else 0
        for chunk in hub_session.steady(response):
            content += chunk
            if len(content) >= skipped + stop - start:
                break
    content = content[skipped : skipped + stop - start]
    if len(content) < stop - start:
        raise ValueError(f"the hub sent {len(content)} bytes of {stop - start}")
    return bytes(content)
