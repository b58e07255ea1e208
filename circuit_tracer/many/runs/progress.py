"""What a person sees while a run goes on: a bar on a terminal, a line every now and then elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from circuit_tracer.many.runs.run import Progress
from circuit_tracer.sizes import duration

SECONDS_BETWEEN_LINES = 30.0


def describe(progress: Progress) -> str:
    """Rate and time left, and how many failed, in words."""
    failed = f"{progress.failed:,} failed  " if progress.failed else ""
    if progress.rate is None or progress.seconds_left is None:
        return f"{failed}opening the model" if progress.done + progress.failed < progress.total else failed.strip()
    rate = f"{60 * progress.rate:,.1f} rows/min  " if progress.rate < 10 else f"{progress.rate:,.0f} rows/s  "
    return f"{failed}{rate}{duration(progress.seconds_left)} left"


class ProgressDisplay:
    """A context manager. Writes to standard error: a bar if that is a terminal, else lines no closer than ``seconds`` apart."""

    def __init__(self, console: Console | None = None, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self.console = console or Console(stderr=True)
        self._seconds, self._shown_at = seconds, -float("inf")
        columns = (TextColumn("rows"), MofNCompleteColumn(), BarColumn(20), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task: TaskID | None = None

    def report(self, progress: Progress) -> None:
        """Move the bar, or print a line if it is time; the last state is always shown."""
        ended = progress.done + progress.failed
        if self.console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task("", total=progress.total)
            self._bar.update(self._task, completed=ended, description=describe(progress))
        elif ended == progress.total or time.monotonic() - self._shown_at >= self._seconds:
            self._shown_at = time.monotonic()
            text = f"rows {ended}/{progress.total}  {describe(progress)}".rstrip()
            self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._bar.stop()
