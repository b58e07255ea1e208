"""What a person sees while a run goes on: a bar on a terminal, a line every now and then elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from circuit_tracer.counted import SECONDS_BETWEEN_LINES, Counted
from circuit_tracer.sizes import duration
from circuit_tracer.training.run.events import StepReport
from circuit_tracer.training.run.log import mean


def describe(report: StepReport) -> str:
    """The state of a run on one line: loss, NMSE, learning rate, active features of a token (of all layers together), dead
    ones, steps skipped if any were, speed, time left."""
    skipped = f"{report.skipped} skipped  " if report.skipped else ""
    return (
        f"loss {report.loss:.3f}  NMSE {mean(report.nmse_S):.3f}  lr {report.learning_rate:.1e}  "
        f"active {sum(report.l0_S):.1f}  dead {100 * mean(report.dead_S):.1f} %  {skipped}"
        f"{report.tokens_per_second:,.0f} tokens/s  {duration(report.seconds_left)} left"
    )


class ProgressDisplay(Counted):
    """A listener that shows the steps done."""

    def __init__(self, console: Console | None = None, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        super().__init__("step", 10, console, seconds)

    def progress(self, report: StepReport) -> None:
        """Show how far a run is."""
        self.show(report.step, report.steps, describe(report))

    def message(self, text: str) -> None:
        """Print the text above the bar."""
        self.print(text)

    def evaluated(self, results: dict[str, Any]) -> None:
        """The trainer says where the results are; the numbers stand there."""
