"""What a person sees while something is counted up: a bar on a terminal, a line every now and then elsewhere."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from circuit_tracer.progress import heard_by, silent

SECONDS_BETWEEN_LINES = 30.0


class Counted:
    """A context manager that writes to standard error. Lines come no closer than ``seconds`` apart, and always at the end.

    what: the thing counted, in front of the numbers. width: of the bar, in letters.
    """

    def __init__(
        self, what: str, width: int, console: Console | None = None, seconds: float = SECONDS_BETWEEN_LINES
    ) -> None:
        self.console = console or Console(stderr=True)
        self._what, self._seconds, self._shown_at = what, seconds, -float("inf")
        columns = (TextColumn(what), MofNCompleteColumn(), BarColumn(width), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task: TaskID | None = None
        self._alone = heard_by(silent)  # no second line beside this one

    def show(self, done: int, total: int, text: str) -> None:
        """Move the bar, or print a line if it is time."""
        if self.console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task("", total=total)
            self._bar.update(self._task, completed=done, description=text)
        elif done == total or time.monotonic() - self._shown_at >= self._seconds:
            self._shown_at = time.monotonic()
            self.print(f"{self._what} {done}/{total}  {text}".rstrip())

    def print(self, text: str) -> None:
        """A line as it is, above the bar."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._alone.__enter__()
        self._bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._bar.stop()
        self._alone.__exit__(None, None, None)
