"""The runtime's contract: what LiteRT-LM 0.18.1 needs of a file, so that it fails here first."""

from __future__ import annotations

from pathlib import Path

from edgezoo_core.contract import capacity, graph, metadata, templates, tokenization
from edgezoo_core.contract.report import Report, examine
from edgezoo_core.contract.subject import Subject, open_subject
from edgezoo_core.types import Progress, silent

#: Every rule; those that others build upon come first.
RULES = (
    *metadata.RULES,
    *graph.RULES,
    *capacity.RULES,
    *tokenization.RULES,
    *templates.RULES,
)


def check(path: Path, texts: Path | None = None, progress: Progress = silent) -> Report:
    """Examines a .tflite or .litertlm, whoever made it. No weight is read.

    Args:
        path: The file.
        texts: Folder with the source's tokenizer, chat template and generation_config.json; None
            leaves out what needs them.
        progress: Told of each stage.

    Raises:
        ArtifactError: The file is neither, or damaged, or the source's tokenizer is.
    """
    progress("reading the file")
    return report(open_subject(path, texts), progress)


def report(subject: Subject, progress: Progress = silent) -> Report:
    """Applies every rule to a file that was opened."""
    progress("applying the rules")
    outcomes = tuple(examine(rule, subject) for rule in RULES)
    kind = "tflite" if subject.bundle is None else "litertlm"
    return Report(subject.path, kind, subject.texts, outcomes)  # type: ignore[arg-type]
