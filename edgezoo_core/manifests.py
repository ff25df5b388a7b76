"""The form of a manifest: what each field that is read must be, whoever wrote the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgezoo_core import paths
from edgezoo_core.errors import ArtifactError

#: What a value must be: a table of fields, a list of one form, or a test with its words. A field
#: whose name ends with `?` may be absent.
_Form = Mapping[str, Any] | list[Any] | tuple[Callable[[Any], bool], str]

#: Largest number of a size or a length.
_LARGEST = 1 << 62


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_bundle_name(value: Any) -> bool:
    # A bundle may have been written to another folder: then the name leads there from here.
    inner = value.replace("../", "") if isinstance(value, str) else None
    return paths.is_inner(inner)


_COUNT: _Form = (_is_count, "a count")
_WORD: _Form = (paths.is_written, "a line of text")
_WORD_OR_NONE: _Form = (lambda v: v is None or paths.is_written(v), "a line of text or null")
_FLAG: _Form = (lambda v: isinstance(v, bool), "true or false")
_NUMBER: _Form = (lambda v: type(v) in (int, float), "a number")
_NAME: _Form = (lambda v: paths.is_inner(v) and "/" not in v, "the name of a file beside it")
_BUNDLE_NAME: _Form = (_is_bundle_name, "a relative path")
_WORDS: _Form = (
    lambda v: isinstance(v, dict) and all(paths.is_written(x) for pair in v.items() for x in pair),
    "a table of texts",
)
_FILES: _Form = [{"name": _WORD, "size_bytes": _COUNT, "sha256": _WORD}]

FORM: _Form = {
    "artifact": {"file": _NAME, "size_bytes": _COUNT, "sha256": _WORD},
    "bundle?": {"file": _BUNDLE_NAME, "size_bytes": _COUNT, "sha256": _WORD},
    "model?": {"family": _WORD, "card_id": _WORD_OR_NONE},
    "checkpoint?": {
        "repo": _WORD_OR_NONE,
        "folder": _WORD_OR_NONE,
        "commit": _WORD_OR_NONE,
        "files?": _FILES,
    },
    "adapters?": [{"source": _WORD, "weight": _NUMBER, "files": _FILES}],
    "options?": {
        "prefill_lengths": [_COUNT],
        "kv_cache_length": _COUNT,
        "kv_layout": _WORD,
        "mask_as_input": _FLAG,
    },
    "recipe?": {
        "name": _WORD,
        "weights": _WORDS,
        "folds?": _WORDS,
        "compensated?": {"text_sha256": _WORD},
    },
    "promise?": {"is_kept": _FLAG},
    "signatures?": [{"name": _WORD}],
    "engine?": _WORD,
    "versions?": _WORDS,
}


def faults(manifest: Any) -> Iterator[str]:
    """Yields what is not as it must be: the field, what it is, and what was expected."""
    yield from _faults(manifest, FORM, "it")


def require(manifest: Mapping[str, Any], where: object, *fields: str) -> None:
    """Checks that a manifest has what is about to be read.

    Raises:
        ArtifactError: It lacks a field.
    """
    missing = [name for name in fields if name not in manifest]
    if missing:
        raise ArtifactError(
            f"the manifest of {where} lacks {', '.join(missing)}",
            remedy="convert the model again, or name the source where the command can be told",
        )


def _faults(value: Any, form: Any, where: str) -> Iterator[str]:
    if isinstance(form, tuple):
        test, words = form
        if not test(value):
            yield f"{where} is {str(value)[:80]!r}, expected {words}"
        return
    kind = list if isinstance(form, list) else dict
    if not isinstance(value, kind):
        yield f"{where} is {str(value)[:80]!r}, expected {'a list' if kind is list else 'a table'}"
        return
    if isinstance(form, list):
        for index, item in enumerate(value):
            yield from _faults(item, form[0], f"{where}[{index}]")
        return
    for key, inner in form.items():
        name = key.removesuffix("?")
        place = name if where == "it" else f"{where}.{name}"
        if name in value:
            yield from _faults(value[name], inner, place)
        elif name == key:
            yield f"{place} is missing"
