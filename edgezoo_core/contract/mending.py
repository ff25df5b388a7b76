"""Mends a bundle whose metadata or tokenizer alone is at fault; its model stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from edgezoo_core import contract, partial
from edgezoo_core.bundle import exchange, sections
from edgezoo_core.bundle import metadata as metadatas
from edgezoo_core.bundle.exchange import Part
from edgezoo_core.bundle.prompts import Prompts
from edgezoo_core.bundle.sections import Contents
from edgezoo_core.contract import manifest, tokenization
from edgezoo_core.contract.report import NotCheckedError, Report
from edgezoo_core.contract.subject import CACHES, Subject, open_subject
from edgezoo_core.contract.tokens import Bundled
from edgezoo_core.decoder import Decoder, KvCache
from edgezoo_core.errors import ArtifactError, listing
from edgezoo_core.types import Progress, silent

T = TypeVar("T")

_TEMPLATES = ("prompt_templates", "jinja_prompt_template")
#: Rule -> fields of LlmMetadata that only the source can tell.
_SOURCED: Mapping[str, tuple[str, ...]] = {
    "start-token": ("start_token",),
    "stop-tokens": ("stop_tokens",),
    "template-renders": _TEMPLATES,
    "template-grows": _TEMPLATES,
    "later-turns": _TEMPLATES,
    "start-token-once": (*_TEMPLATES, "start_token"),
    "chat-template": _TEMPLATES,
}
#: Rule -> fields of LlmMetadata that the rest of the bundle tells.
_PLAIN: Mapping[str, tuple[str, ...]] = {
    "model-type": ("llm_model_type",),
    "max-num-tokens": ("max_num_tokens",),
    "suppress-tokens": ("suppress_tokens",),
}
_TOKENIZER = {"tokenizer", "tokenizer-ids"}
_EXECUTOR = {"executor-metadata", "kv-capacity"}
_TOP_P, _GREEDY = 2, 3


def mend(path: Path, texts: Path | None = None, progress: Progress = silent) -> Report:
    """Mends what can be mended in a bundle, in place, and examines the result.

    What stood at `path` is whole until the mended file takes its place. Sections that are not at
    fault, the model's among them, keep their bytes.

    Args:
        path: A .litertlm.
        texts: Folder of the source, without which tokens, templates and tokenizer cannot be told.
        progress: Told of each stage.

    Raises:
        ArtifactError: It is no bundle, or damaged, or cannot be written.
    """
    progress("reading the file")
    subject = open_subject(path, texts)
    if subject.bundle is None:
        raise ArtifactError(
            f"{path} is no bundle, whose metadata or tokenizer could be mended",
            remedy="bundle it with `edgezoo bundle`, or convert the model again",
        )
    before = contract.report(subject, progress)
    violated = {finding.rule for finding in before.findings}
    parts = _Mending(subject, subject.bundle, violated).parts()
    if not parts:
        return before
    with partial.reserved(path.resolve()), partial.files(path.resolve()) as (output, _):
        progress("writing the bundle")
        sha256 = exchange.write(subject.bundle, parts, output)
        size = output.stat().st_size
        after = contract.check(output, texts, progress)
        _refuse_harm(before, after)
        record = _known(lambda: _record(open_subject(output, texts))) or {}
        manifest.publish(output, path, {"size_bytes": size, "sha256": sha256, **record})
    left = {finding.rule for finding in after.findings}
    return replace(after, path=path, mended=tuple(sorted(violated - left)))


def _refuse_harm(before: Report, after: Report) -> None:
    passed = {outcome.rule for outcome in before.outcomes if outcome.verdict == "passes"}
    harmed = passed & {finding.rule for finding in after.errors}
    if harmed:
        raise ArtifactError(
            f"{before.path} would violate {listing(sorted(harmed))} once it is mended",
            remedy="make the bundle anew with `edgezoo bundle`",
        )


class _Mending:
    """Sections that a bundle is to get in place of its own.

    Args:
        subject: The bundle.
        contents: Its sections.
        violated: Names of the rules that it violates.
    """

    def __init__(self, subject: Subject, contents: Contents, violated: Collection[str]) -> None:
        self._subject = subject
        self._contents = contents
        self._violated = set(violated)
        self._tokenizer: Bundled | None = None

    def parts(self) -> list[Part]:
        """Returns the sections; none where nothing can be mended."""
        parts = []
        if self._violated & _TOKENIZER and self._subject.texts:
            self._tokenizer = _known(lambda: tokenization.of_source(self._subject))
        if self._tokenizer:
            kind = tokenization.KINDS[self._tokenizer.form]
            parts.append(Part(kind, self._tokenizer.content, self._contents.tokenizers()))
        for kind, message in (
            (sections.EXECUTOR_METADATA, self._executor()),
            (sections.LLM_METADATA, self._llm()),
        ):
            if message is not None:
                content = message.SerializeToString(deterministic=True)
                parts.insert(0, Part(kind, content, self._contents.of_kind(kind)))
        return parts

    def _executor(self) -> Any | None:
        subject = self._subject
        if not self._violated & _EXECUTOR or subject.cache_names != CACHES[0]:
            return None
        cache = _known(lambda: subject.cache)
        if cache is None:
            return None
        message = subject.executor or sections.new_message(sections.EXECUTOR_METADATA)
        message.llm_executor_metadata.ClearField("state_buffers")
        message.MergeFromString(metadatas.executor(cache))
        return message

    def _llm(self) -> Any | None:
        found = self._contents.message(sections.LLM_METADATA)
        message = found or sections.new_message(sections.LLM_METADATA)
        fields = self._fields(message)
        is_other = "llm-metadata" in self._violated and found is not None  # one too many
        if "sampler-type" in self._violated:
            is_greedy = message.sampler_params.type == _GREEDY
            message.sampler_params.type = _TOP_P
            message.sampler_params.k = 1 if is_greedy else message.sampler_params.k
            is_other = True
        right = _known(self._right) if fields else None
        if right is not None:
            for field in right.DESCRIPTOR.fields:
                (message if field.name in fields else right).ClearField(field.name)
            message.MergeFrom(right)
        return message if right is not None or is_other else None

    def _fields(self, message: Any) -> set[str]:
        """Returns the fields of LlmMetadata that are at fault, and can be told."""
        has_source = self._subject.texts is not None
        rules = {**_PLAIN, **_SOURCED} if has_source else _PLAIN
        if has_source and not self._contents.of_kind(sections.LLM_METADATA):
            return {field.name for field in message.DESCRIPTOR.fields}
        fields = {f for rule in self._violated & rules.keys() for f in rules[rule]}
        if has_source and self._subject.source_prompts.kind == "none":
            fields -= set(_TEMPLATES)  # the source's template is none that LiteRT-LM renders
        if self._tokenizer:
            fields.add("suppress_tokens")
        return fields

    def _right(self) -> Any:
        """Returns the LlmMetadata that a bundle of the source gets."""
        subject, decoder = self._subject, self._decoder()
        message = sections.new_message(sections.LLM_METADATA)
        if subject.texts is None:
            about = metadatas.llm(subject.tokenizer, Prompts("none"), (), None, decoder)
        else:
            about = metadatas.llm(
                subject.source,
                subject.source_prompts,
                subject.stop_tokens,
                metadatas.sampling(subject.generation, decoder.vocabulary),
                decoder,
            )
        message.ParseFromString(about)
        return message

    def _decoder(self) -> Decoder:
        # Only the capacity and the number of ids matter to metadata; 0 where the file does not say.
        capacity = _known(lambda: self._subject.capacity) or 0
        ids = _known(lambda: self._subject.vocabulary_size) or 0
        return Decoder({}, KvCache(0, 0, capacity, 2, 3), ids)


def _known(find: Callable[[], T]) -> T | None:
    """Returns what can be found in a file, or None where it is not told."""
    try:
        return find()
    except NotCheckedError:
        return None


def _record(subject: Subject) -> dict[str, Any]:
    """Returns what a manifest says of a bundle's tokens."""
    start = subject.tokenizer.ids_of(subject.llm.start_token)
    stops = [subject.tokenizer.ids_of(union) for union in subject.llm.stop_tokens]
    return {
        "tokenizer": subject.tokenizer.form,
        "start_token": start[0] if start else None,
        "stop_tokens": [ids[0] for ids in stops if len(ids) == 1],
        "max_num_tokens": subject.llm.max_num_tokens,
    }
