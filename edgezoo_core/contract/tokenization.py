"""Rules for the tokenizer, and for the tokens that begin and end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgezoo_core.bundle import sections
from edgezoo_core.bundle.vocabulary import PROBES, with_tokens
from edgezoo_core.contract import templates
from edgezoo_core.contract.report import Fault, NotCheckedError, rule
from edgezoo_core.contract.subject import Subject
from edgezoo_core.contract.tokens import Bundled
from edgezoo_core.errors import ArtifactError, listing

_FIX = "`edgezoo check --fix --source …` mends it; so does `edgezoo bundle`"


@rule(
    "tokenizer",
    "error",
    why="LiteRT-LM creates no engine without a tokenizer that it can load; it takes SentencePiece"
    " before Hugging Face, and of several the last",
    remedy=_FIX,
    is_mendable=True,
)
def tokenizer(subject: Subject) -> Iterator[Fault]:
    """The bundle has one tokenizer, which can be loaded."""
    found = subject.contents.tokenizers()
    if len(found) != 1:
        kinds = listing(section.kind for section in found)
        yield Fault(
            f"sections {kinds} are one" if found else "no section is one",
            "warning" if found else "error",
        )
    if found:
        try:
            Bundled(found[0].kind, subject.contents.read(found[0]))
        except ArtifactError as e:
            yield Fault(e.message, "error")


@rule(
    "vocabulary",
    "error",
    why="an id that the model does not have reads past its embedding",
    remedy="bundle the model with the tokenizer of its own source",
)
def vocabulary(subject: Subject) -> Iterator[str]:
    """The model knows every id of the tokenizer."""
    if subject.tokenizer.size > subject.vocabulary_size:
        yield (
            f"the tokenizer has ids up to {subject.tokenizer.size - 1}, the logits tell"
            f" {subject.vocabulary_size} apart"
        )


@rule(
    "suppress-tokens",
    "warning",
    why="the model may choose an id that stands for no text: a hole in the answer",
    remedy="`edgezoo check --fix` suppresses them; so does `edgezoo bundle`",
    is_mendable=True,
)
def suppress_tokens(subject: Subject) -> Iterator[str]:
    """Ids beyond the tokenizer are never chosen."""
    beyond = set(range(subject.tokenizer.size, subject.vocabulary_size))
    chosen = len(beyond - set(subject.llm.suppress_tokens.ids))
    if chosen:
        yield f"{chosen} of {len(beyond)} ids beyond the tokenizer can be"


@rule(
    "tokenizer-ids",
    "error",
    why="the model reads other tokens than it learned",
    remedy=_FIX,
    is_mendable=True,
)
def tokenizer_ids(subject: Subject) -> Iterator[str]:
    """The tokenizer gives the source's ids, control tokens included."""
    expected = of_source(subject)
    for probe in (*PROBES, with_tokens(list(subject.source.added))):
        ours, theirs = subject.tokenizer.encode(probe), expected.encode(probe)
        if ours != theirs:
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            yield (
                f"{probe[:40]!r}… is {ours[at : at + 5]} from token {at} on, the source says"
                f" {theirs[at : at + 5]}"
            )
            return


@rule(
    "start-token",
    "error",
    why="LiteRT-LM puts it before every prompt: one that the model never learned, or the lack of"
    " one that it did, turns answers into gibberish; one without an id ends the app",
    remedy=_FIX,
    is_mendable=True,
)
def start_token(subject: Subject) -> Iterator[str]:
    """start_token is what the source puts before a prompt, if it puts anything."""
    found: int | None = None
    if subject.llm.HasField("start_token"):
        ids = subject.tokenizer.ids_of(subject.llm.start_token)
        if not ids:
            yield "it is set, and has no id"
            return
        if len(ids) > 1:
            yield f"it is no single token, but {ids}, of which LiteRT-LM takes the first"
        found = ids[0]
    try:
        expected, by = subject.source.start_token, "the source"
    except NotCheckedError as e:
        if not subject.tokenizer.prepended:
            raise NotCheckedError(f"its tokenizer does not say, and {e}") from e
        expected, by = subject.tokenizer.prepended[0], "the tokenizer in the bundle"
    is_written = expected is not None and found is None and templates.spells(subject, expected)
    if found != expected and not is_written:
        yield f"it is {_token(subject, found)}, {by} puts {_token(subject, expected)}"


@rule(
    "stop-tokens",
    "error",
    why="LiteRT-LM begins no conversation without one, and without the one that the model ends"
    " with, answers run on to the end of the cache",
    remedy=_FIX,
    is_mendable=True,
)
def stop_tokens(subject: Subject) -> Iterator[Fault]:
    """stop_tokens are all those that end the source's answers, and the tokenizer has them."""
    stops = [subject.tokenizer.ids_of(union) for union in subject.llm.stop_tokens]
    if not any(stops):
        yield Fault("there is none", "error")
    for ids in stops:
        unknown = [i for i in ids if not 0 <= i < subject.tokenizer.size]
        if unknown:
            yield Fault(f"{unknown} are no ids of the tokenizer", "warning")
    missing = [i for i in subject.stop_tokens if [i] not in stops]
    if missing:
        named = listing(_token(subject, i) for i in missing)
        yield Fault(f"the source also ends answers with {named}", "error")


def of_source(subject: Subject) -> Bundled:
    """Returns the tokenizer that a bundle of the source gets; it is held against the source.

    Raises:
        NotCheckedError: LiteRT-LM reads no form of it.
    """
    source = subject.source
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return Bundled(KINDS[source.form], source.file(Path(scratch)).read_bytes())
    except ArtifactError as e:
        raise NotCheckedError(e.message) from e


KINDS = {"sentencepiece": sections.SENTENCEPIECE, "huggingface": sections.HUGGINGFACE}


def _token(subject: Subject, token: int | None) -> str:
    return "none" if token is None else f"{token} {subject.tokenizer.text_of(token)!r}"


RULES = (
    tokenizer,
    vocabulary,
    suppress_tokens,
    tokenizer_ids,
    start_token,
    stop_tokens,
)
