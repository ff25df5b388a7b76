"""Names that strangers give to files: an index, a manifest, a hub, a link in a folder."""

from __future__ import annotations

from pathlib import Path

from edgezoo_core.errors import tame

#: Longest name of a file on the disks there are, in bytes.
_LONGEST = 255


def is_inner(name: object) -> bool:
    """Says whether a name leads to a file inside of a folder, on any system, and can be shown.

    An ordinary name of which also Windows makes no other, and no longer than disks can hold.
    """
    return (
        isinstance(name, str)
        and is_ordinary(name)
        and not any(letter in name for letter in '\\:*?"<>|')
        and all(len(part.encode()) <= _LONGEST for part in name.split("/"))
    )


def is_ordinary(name: object) -> bool:
    """Says whether git could have a file of this name, and whether it can be shown.

    A relative path without empty parts, `.`, `..`, and control characters.
    """
    return (
        isinstance(name, str)
        and is_written(name)
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


def is_written(text: object) -> bool:
    """Says whether a path can be written down: on one line, as UTF-8, obeyed by no terminal."""
    return isinstance(text, str) and not {"\n", "\t"} & set(text) and tame(text) == text


def leaves(folder: Path, name: str) -> bool:
    """Says whether a file of a folder is a link to somewhere else.

    The hub's cache links the files of a snapshot, `snapshots/<commit>/`, to `blobs/` beside it:
    that is no elsewhere.
    """
    target, home = (folder / name).resolve(), folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append(home.parents[1] / "blobs")
    return not any(target.is_relative_to(place) for place in homes)
