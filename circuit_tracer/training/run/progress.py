"""What a person sees while a run goes on: a bar on a terminal, a line every now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from circuit_tracer.sizes import duration
from circuit_tracer.training.run.events import StepReport
from circuit_tracer.training.run.log import mean

SECONDS_BETWEEN_LINES = 30.0


def describe(report: StepReport) -> str:
    """The state of a run on one line: loss, NMSE, learning rate, active features of a token (of all layers together), dead
    ones, steps skipped if any were, speed, time left."""
    skipped = f"{report.skipped} skipped  " if report.skipped else ""
    return (
        f"loss {report.loss:.3f}  NMSE {mean(report.nmse_S):.3f}  lr {report.learning_rate:.1e}  "
        f"active {sum(report.l0_S):.1f}  dead {100 * mean(report.dead_S):.1f} %  {skipped}"
        f"{report.tokens_per_second:,.0f} tokens/s  {duration(report.seconds_left)} left"
    )


class ProgressDisplay:
    """A listener that writes to standard error; a context manager. It draws a bar if that is a terminal, else lines.

    Lines come no closer than ``seconds`` apart, and always for the first and the last report.
    """

    def __init__(self, console: Console | None = None, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self.console = console or Console(stderr=True)
        self._seconds, self._shown_at = seconds, -float("inf")
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(10), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task: TaskID | None = None

    def progress(self, report: StepReport) -> None:
        """Move the bar, or print a line if it is time."""
        if self.console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task("", total=report.steps)
            self._bar.update(self._task, completed=report.step, description=describe(report))
        elif report.step == report.steps or time.monotonic() - self._shown_at >= self._seconds:
            self._shown_at = time.monotonic()
            self._print(f"step {report.step}/{report.steps}  {describe(report)}")

    def message(self, text: str) -> None:
        """Print the text above the bar."""
        self._print(text)

    def evaluated(self, results: dict[str, Any]) -> None:
        """The trainer says where the results are; the numbers stand there."""

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._bar.stop()
