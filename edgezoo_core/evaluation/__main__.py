"""lm_eval's own command, with this model among its models."""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate

import edgezoo_core.evaluation  # noqa: F401 - registers the model

cli_evaluate()
