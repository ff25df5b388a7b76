"""What a new plugin starts from: a config.json, and names and shapes of tensors, no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgezoo_core import checkpoint as checkpoints
from edgezoo_core.cards import HUB_REPO
from edgezoo_core.errors import CheckpointError
from edgezoo_core.scaffold.identity import Identity
from edgezoo_core.types import Progress, silent

#: Stands where the author must name the organization on the hub.
PLACEHOLDER = "your-org"


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint as it can be known without reading its weights.

    Attributes:
        repo: `org/name`; `your-org/…` where nobody said.
        config: Its config.json.
        shapes: Shape by name of tensor; empty where the headers could not be read.
        revision: Branch, tag or commit that was read.
        license: Of the weights; `unknown` where nobody said.
        is_gated: Whether the hub asks to accept the licence first.
        read: What was read, for people.
        unread: Why the names of the tensors are not known; empty where they are.
    """

    repo: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    revision: str = "main"
    license: str = "unknown"
    is_gated: bool = False
    read: tuple[str, ...] = ()
    unread: str = ""

    @property
    def architectures(self) -> tuple[str, ...]:
        """As config.json spells them.

        Raises:
            CheckpointError: It names none.
        """
        value = self.config.get("architectures")
        # They go into a README and a card as they are.
        if not isinstance(value, list) or not value or not all(map(_is_class, value)):
            raise CheckpointError(
                f"config.json of {self.repo} does not name its architecture",
                remedy='add it to config.json: "architectures": ["…ForCausalLM"]',
            )
        return tuple(value)


def plain_llama(names: Identity) -> Source:
    """Returns a source for a family that begins as a plain Llama."""
    return Source(
        repo=f"{PLACEHOLDER}/{names.family}-1b",
        config={"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        unread="no --from: the names are those of a plain Llama",
    )


def from_folder(folder: Path, *, progress: Progress = silent) -> Source:
    """Reads the config.json and the headers of a folder.

    Raises:
        CheckpointError: There is no config.json, or a file is damaged.
    """
    progress(f"reading {folder}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder", remedy="check the path")
    config = checkpoints.read_config(folder)
    if config is None:
        raise CheckpointError(
            f"{folder} has no config.json",
            remedy="name a folder that transformers' save_pretrained wrote",
        )
    shapes: dict[str, tuple[int, ...]] = {}
    read, unread = ["config.json"], ""
    try:
        checkpoints.weight_files(p.name for p in folder.iterdir() if p.is_file())
    except CheckpointError as e:
        unread = e.message
    else:
        opened = checkpoints.open_folder(folder)
        shapes = {name: tensor.shape for name, tensor in opened.tensors.items()}
        read += [f"headers of {name}" for name in opened.weight_files]
    return Source(
        repo=_repo_of(config, folder),
        config=config,
        shapes=shapes,
        read=tuple(read),
        unread=unread,
    )


def _is_class(name: object) -> bool:
    return isinstance(name, str) and name.isascii() and name.isidentifier()


def _repo_of(config: Mapping[str, Any], folder: Path) -> str:
    # transformers notes there where a checkpoint was loaded from.
    origin = config.get("_name_or_path")
    if isinstance(origin, str) and HUB_REPO.fullmatch(origin):
        return origin
    named = f"{PLACEHOLDER}/{folder.name}"
    return named if HUB_REPO.fullmatch(named) else f"{PLACEHOLDER}/model"
