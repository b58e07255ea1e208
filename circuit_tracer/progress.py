"""Progress: a callback that is told how far something is, words for what is being done, and a line that shows both."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import IO, Any, Self, TypeVar

from circuit_tracer.sizes import duration

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # what is being done, done, of (0: nobody knows); it ends when all is done

PATIENCE = 2.0  # seconds that a command may take before anything is shown
FRAME = 0.2  # seconds between two looks of the line on a terminal
SECONDS_BETWEEN_LINES = 5.0  # elsewhere
BAR = 20  # letters
USUAL_WIDTH = 80  # of a terminal that does not say


def silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


_listener: ContextVar[Progress] = ContextVar("progress", default=silent)


@contextmanager
def heard_by(progress: Progress) -> Iterator[None]:
    """Inside, in this thread, what `doing` says goes there."""
    token = _listener.set(progress)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def doing(stage: str) -> Iterator[None]:
    """Inside, `stage` is what is being done, for whoever shows it: a command does, nobody else by default."""
    progress = _listener.get()
    progress(stage, 0, 0)
    try:
        yield
    finally:
        progress(stage, 1, 1)


@contextmanager
def told() -> Iterator[Progress]:
    """Inside, what is reported goes where `doing` is heard; stages that have not ended do when this does."""
    progress, begun = _listener.get(), set[str]()

    def report(stage: str, done: int, total: int) -> None:
        begun.add(stage)
        progress(stage, done, total)

    try:
        yield report
    finally:
        for stage in begun:
            progress(stage, 1, 1)


def each_of(stage: str, things: Sequence[T]) -> Iterator[T]:
    """The things one by one, while it is told how many are done."""
    with told() as progress:
        for number, thing in enumerate(things):
            progress(stage, number, len(things))
            yield thing


@contextmanager
def bar(verbose: bool = True) -> Iterator[Progress]:
    """Shows progress on standard error; see `Line`."""
    with Line(verbose=verbose) as line, heard_by(line.report):
        yield line.report


@dataclass
class _Stage:
    """started, done_before: when it was first heard of, and how much was done then, for the rate."""

    started: float
    done_before: int
    done: int
    total: int
    said: float = -float("inf")

    def text(self, name: str, now: float) -> str:
        """Name, bar, numbers, rate and time left; name and seconds where nobody knows how much there is to do."""
        spent = now - self.started
        if self.total <= 1:
            return f"{name}  {duration(spent)}"
        filled = BAR * min(self.done, self.total) // self.total
        shown = f"{name}  [{'#' * filled}{'.' * (BAR - filled)}] {self.done:,}/{self.total:,}"
        rate = (self.done - self.done_before) / spent if spent > 0 else 0.0
        if rate <= 0:
            return f"{shown}  {duration(spent)}"
        return f"{shown}  {_rate(rate)}  {duration((self.total - self.done) / rate)} left"


def _rate(rate: float) -> str:
    if rate < 1:
        return f"{1 / rate:,.1f} s each"
    return f"{rate:,.1f}/s" if rate < 10 else f"{rate:,.0f}/s"


class Line:
    """A context manager whose `report` is a `Progress`, shown on standard error.

    On a terminal: one line, drawn by a thread of its own once ``patience`` seconds went by, and wiped when nothing is being
    done; with ``verbose`` at once, and stages that ended stay. Elsewhere: nothing, or, with ``verbose``, a line when a stage
    begins, every few seconds, and when it ends. What others print meanwhile comes out above the line. Where they stop in the
    middle of one (a question, the hub's bar of a download), it waits: rich's display would hold that back until the line ends.
    """

    def __init__(self, stream: IO[str] | None = None, verbose: bool = False, patience: float = PATIENCE) -> None:
        self._stream = stream or sys.stderr
        self._verbose, self._patience = verbose, 0.0 if verbose else patience
        self._terminal = self._stream.isatty()
        self._stages: dict[str, _Stage] = {}  # the last one is shown
        self._shown, self._drawn = "", 0  # the line that stands there, and its letters
        self._fresh = True  # whether the cursor stands at the beginning of a line
        self._started = time.monotonic()
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._replaced: dict[str, _Above] = {}

    def report(self, stage: str, done: int, total: int) -> None:
        """A stage begins, goes on, or ends."""
        if not (self._terminal or self._verbose):
            return
        now = time.monotonic()
        with self._lock:
            ended = 0 < total <= done
            if (known := self._stages.get(stage)) is None:
                if ended:
                    return
                known = self._stages[stage] = _Stage(now, done, done, total)
            if total != 1 or not ended:  # the end of a stage that counted more than itself
                known.done, known.total = done, total
            self._note(stage, known, now, ended)
            if ended:
                self._stages.pop(stage, None)  # gone already where nothing could be written
                if not self._stages:
                    self.wipe()
            elif self._terminal and self._thread is None:
                self._begin_to_draw()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._closed.set()
        try:
            if self._thread is not None:
                self._thread.join()
            self.wipe()
        finally:
            for name, above in self._replaced.items():
                if getattr(sys, name) is above:  # else whoever redirected it has put back what was there
                    setattr(sys, name, above.stream)

    def _note(self, name: str, stage: _Stage, now: float, ended: bool) -> None:
        """What stays to be read of a stage."""
        if not self._verbose or (self._terminal and not ended):
            return
        if ended or now - stage.said >= SECONDS_BETWEEN_LINES:
            stage.said = now
            of = f" {stage.done:,}/{stage.total:,}" if stage.total > 1 else ""
            self.wipe()
            self._put(f"{name}{of}  {duration(now - stage.started)}{'' if ended else ' ...'}\n")

    def _begin_to_draw(self) -> None:
        for name in ("stdout", "stderr"):  # what is printed there meanwhile comes out above
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                self._replaced[name] = _Above(stream, self)
                setattr(sys, name, self._replaced[name])
        self._thread = threading.Thread(target=self._draw_on, daemon=True, name="progress")
        self._thread.start()

    def _draw_on(self) -> None:
        if self._closed.wait(max(0.0, self._patience - (time.monotonic() - self._started))):
            return
        while True:
            with self._lock:
                if self._stages and self._fresh:
                    name, stage = next(reversed(self._stages.items()))
                    self._draw(stage.text(name, time.monotonic()))
            if self._closed.wait(FRAME):
                return

    def _draw(self, text: str) -> None:
        text = text[: self._width() - 1]
        if text != self._shown or not self._drawn:
            self._put("\r" + text.ljust(self._drawn))
            self._shown, self._drawn = text, len(text)

    def wipe(self) -> None:
        """Leave the line empty, to be written on."""
        if self._drawn:
            self._put("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone, or full
            self._stages.clear()
            self._drawn, self._terminal, self._verbose = 0, False, False

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or USUAL_WIDTH
        except (OSError, ValueError):
            return USUAL_WIDTH


class _Above:
    """A terminal's stream that others write to while a line stands there."""

    def __init__(self, stream: Any, line: Line) -> None:
        self.stream, self._line = stream, line

    def write(self, text: str) -> int:
        """Wipe the line first; it is drawn again once the cursor stands at the beginning of one."""
        with self._line._lock:
            self._line.wipe()
            if text:
                self._line._fresh = text.endswith("\n")
            return int(self.stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
