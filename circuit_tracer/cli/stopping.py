"""Ctrl-C and SIGTERM while prompts are traced: what is done is written first."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """A context manager. The first signal ends the trace in hand: behind the rows that are computed just then, or at once where
    there are none yet. While a graph is made or written it waits. A second signal acts at once. ``asked``: whether one came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._stage = ""  # "features": rows are computed; "assembling": the graph is made or written
        self._before: dict[int, Any] = {}

    def begin(self) -> None:
        """A trace begins, of which nothing is to be kept yet."""
        self._stage = ""

    def progress(self, stage: str, done: int, total: int) -> None:
        """To be told how far the trace is; the place where it ends."""
        self._stage = stage
        if self.asked and stage == "features":
            self._stage = "assembling"
            raise KeyboardInterrupt

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            # a signal that is ignored (nohup) stays so
            wanted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._ask) for number in wanted}
        return self

    def __exit__(self, *failure: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        again, self.asked = self.asked, True
        if again or not self._stage:
            raise KeyboardInterrupt
        with suppress(OSError):  # not through a stream, which may be in the middle of a line
            os.write(2, b"ending behind the rows in hand; once more ends at once, and keeps less\n")
