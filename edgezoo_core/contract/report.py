"""Rules of the runtime's contract, and what came of examining a file by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgezoo_core.errors import plain

if TYPE_CHECKING:
    from edgezoo_core.contract.subject import Subject

#: `error`: the device refuses the file, or talks garbage. `warning`: it works, with a limitation.
Severity = Literal["error", "warning"]
Verdict = Literal["passes", "error", "warning", "not checked"]


class NotCheckedError(Exception):
    """A rule cannot be applied to a file, for the reason given."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What a rule found, where it is graver or milder than the rule says in general."""

    found: str
    severity: Severity


Check = Callable[["Subject"], Iterator["str | Fault"]]


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that LiteRT-LM needs.

    Attributes:
        name: Stable id.
        severity: Of a violation.
        demand: What must hold.
        why: What happens on the device where it does not.
        remedy: How to mend it.
        check: Yields what was found for each violation; `NotCheckedError` if it cannot tell.
        is_mendable: Whether `--fix` may mend it in a bundle, without a new conversion.
    """

    name: str
    severity: Severity
    demand: str
    why: str
    remedy: str
    check: Check
    is_mendable: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """A violation of a rule.

    Attributes:
        rule: Its name.
        severity: How grave it is.
        found: What is in the file.
        why: What happens on the device.
        remedy: How to mend it.
        is_mendable: Whether `--fix` may.
    """

    rule: str
    severity: Severity
    found: str
    why: str
    remedy: str
    is_mendable: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one rule.

    Attributes:
        rule: Its name.
        demand: What must hold.
        verdict: The gravest of its findings.
        reason: Why it was not checked, or not to its end; else None.
        findings: Its violations.
    """

    rule: str
    demand: str
    verdict: Verdict
    reason: str | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a file.

    Attributes:
        path: The file.
        format: What kind of file it is.
        texts: The folder of the source that it was held against, if any.
        outcomes: Of every rule.
        mended: Names of the rules that `--fix` mended.
    """

    path: Path
    format: Literal["tflite", "litertlm"]
    texts: Path | None
    outcomes: tuple[Outcome, ...]
    mended: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether the device takes the file; a warning does not hinder it."""
        return not self.errors

    @property
    def findings(self) -> list[Finding]:
        """All violations."""
        return [finding for outcome in self.outcomes for finding in outcome.findings]

    @property
    def errors(self) -> list[Finding]:
        """The grave ones."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return {
            "path": str(self.path),
            "format": self.format,
            "source": str(self.texts) if self.texts else None,
            "passes": self.passes,
            "mended": list(self.mended),
            "rules": [asdict(outcome) for outcome in self.outcomes],
        }


def rule(
    name: str, severity: Severity, *, why: str, remedy: str, is_mendable: bool = False
) -> Callable[[Check], Rule]:
    """Makes a rule of a function that yields what it found; its docstring says the demand."""

    def make(check: Check) -> Rule:
        demand = (check.__doc__ or name).partition("\n")[0].removesuffix(".")
        return Rule(name, severity, demand, why, remedy, check, is_mendable)

    return make


def examine(rule: Rule, subject: Subject) -> Outcome:
    """Applies a rule to a file; what it found before it could not go on counts."""
    findings: list[Finding] = []
    reason = None
    try:
        for found in rule.check(subject):
            fault = found if isinstance(found, Fault) else Fault(found, rule.severity)
            findings.append(_finding(rule, fault, is_bundle=subject.bundle is not None))
    except NotCheckedError as e:
        reason = plain(str(e))
    verdict: Verdict = "not checked" if reason else "passes"
    if findings:
        verdict = min((f.severity for f in findings), key=("error", "warning").index)
    return Outcome(rule.name, rule.demand, verdict, reason, tuple(findings))


def _finding(rule: Rule, fault: Fault, *, is_bundle: bool) -> Finding:
    return Finding(
        rule.name,
        fault.severity,
        plain(fault.found),
        rule.why,
        rule.remedy,
        rule.is_mendable and is_bundle,
    )
