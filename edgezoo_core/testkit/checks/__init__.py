"""The checks, by what they look at."""

from __future__ import annotations

from edgezoo_core.testkit.check import Check
from edgezoo_core.testkit.checks import authoring, capabilities, files, numbers, package, tensors

#: Every check; those that others need come first.
CHECKS: tuple[Check, ...] = (
    *package.CHECKS,
    *authoring.CHECKS,
    *tensors.CHECKS,
    *numbers.CHECKS,
    *files.CHECKS,
    *capabilities.CHECKS,
)
