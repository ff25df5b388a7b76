"""What becomes of a checkpoint's values on their way into a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgezoo_core.conversion.codes import NO_CODES, Codes
from edgezoo_core.conversion.rescaling import UNCHANGED, Rescaling

if TYPE_CHECKING:
    from edgezoo_core.adapter_merging import AdapterSet


@dataclass(frozen=True, slots=True)
class Changes:
    """All that a recipe and the user ask for, in the order in which it happens.

    Attributes:
        adapters: What is merged into the values.
        rescaling: What they are multiplied by then.
        codes: Weights that were rounded before, in place of rounding each value to the nearest.
    """

    adapters: AdapterSet | None = None
    rescaling: Rescaling = UNCHANGED
    codes: Codes = NO_CODES


#: The values of the checkpoint, as they are.
NO_CHANGES = Changes()
