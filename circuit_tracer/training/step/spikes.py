"""Steps that are skipped: an error far above the usual one, or one that is not finite (training/README.md §8)."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from circuit_tracer.errors import NumericalError

REMEMBERED = 64  # steps whose median is the usual error
FEWEST = 16  # before so many nothing is unusual
SKIPPED_IN_A_ROW = 10  # then it is not the batch


class StepRefused(NumericalError):
    """A step that would have been taken from a bad loss; raised before it changed anything."""


@dataclass
class SpikeWatch:
    """Remembers the errors of the last steps taken, and how many were not."""

    errors: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    skipped: int = 0  # in the whole run
    in_a_row: int = 0

    def highest(self, times: float) -> float:
        """The error above which a step is refused: ``times`` the median; infinity for 0, or while too few are known."""
        if not times or len(self.errors) < FEWEST:
            return math.inf
        return times * statistics.median(self.errors)

    def taken(self, error: float) -> None:
        """A step was taken at this error."""
        self.errors.append(error)
        self.in_a_row = 0

    def refused(self, reason: StepRefused) -> None:
        """A step was not. Raises NumericalError, when it is the last of too many in a row."""
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= SKIPPED_IN_A_ROW:
            raise NumericalError(
                f"{reason} It is the last of {self.in_a_row} steps in a row that were skipped: lower "
                "optimizer.learning_rate; if the data changed, raise optimizer.skip_above."
            )

    def state(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"errors": list(self.errors), "skipped": self.skipped, "in_a_row": self.in_a_row}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> SpikeWatch:
        """From `state`."""
        return cls(deque(state["errors"], maxlen=REMEMBERED), state["skipped"], state["in_a_row"])
