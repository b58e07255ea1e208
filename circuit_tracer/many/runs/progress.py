"""What a person sees while a run goes on: a bar on a terminal, a line every now and then elsewhere."""

from __future__ import annotations

from circuit_tracer.counted import Counted
from circuit_tracer.many.runs.run import Progress
from circuit_tracer.sizes import duration


def describe(progress: Progress) -> str:
    """Rate and time left, and how many failed, in words."""
    failed = f"{progress.failed:,} failed  " if progress.failed else ""
    if progress.rate is None or progress.seconds_left is None:
        return f"{failed}opening the model" if progress.done + progress.failed < progress.total else failed.strip()
    rate = f"{60 * progress.rate:,.1f} rows/min  " if progress.rate < 10 else f"{progress.rate:,.0f} rows/s  "
    return f"{failed}{rate}{duration(progress.seconds_left)} left"


class ProgressDisplay(Counted):
    """Shows the rows that have ended."""

    def __init__(self) -> None:
        super().__init__("rows", 20)

    def report(self, progress: Progress) -> None:
        """Show how far a run is."""
        self.show(progress.done + progress.failed, progress.total, describe(progress))
