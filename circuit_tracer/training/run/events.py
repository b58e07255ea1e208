"""What a run tells while it runs, and who listens. Letters: S source layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class StepReport:
    """The state of a run after `step` of `steps` steps. Quantities are means over the steps since the last report."""

    step: int
    steps: int
    tokens: int  # trained on so far
    loss: float  # all terms together
    nmse_S: list[float]  # normalised error of each layer reconstructed (README.md §5)
    l0_S: list[float]  # active features a token, of each source layer
    dead_S: list[float]  # share of dead features of each source layer, from 0 to 1
    learning_rate: float
    active: float  # k of this step; 0 where a penalty decides
    tokens_per_second: float
    seconds_left: float
    cut: float | None = None  # the running score that decides, if one does for the whole batch
    terms: dict[str, float] = field(default_factory=dict)  # the loss by term
    skipped: int = 0  # steps of the run so far that were not taken, because their loss was bad


class Listener(Protocol):
    """Told of progress; must not change the run."""

    def progress(self, report: StepReport) -> None:
        """Called every `run.log_every` steps and at the last one."""

    def message(self, text: str) -> None:
        """Something worth a line: a stage begun, a file written."""

    def evaluated(self, results: dict[str, Any]) -> None:
        """Called with the results of an evaluation, as JSON-able values."""


class NullListener:
    """Hears nothing."""

    def progress(self, report: StepReport) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def evaluated(self, results: dict[str, Any]) -> None:
        """Do nothing."""
