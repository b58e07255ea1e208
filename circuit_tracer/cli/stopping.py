"""Ctrl-C and SIGTERM while prompts are traced: what is done is written first."""

from __future__ import annotations

import signal
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """A context manager. The first signal ends the trace in hand as Ctrl-C does, but while a graph is made or written waits
    until it is; a second one acts at once. ``asked``: whether one came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._held = False
        self._before: dict[int, Any] = {}

    def progress(self, stage: str, done: int, total: int) -> None:
        """To be told how far the trace is."""
        self._held = stage == "assembling"

    def begin(self) -> None:
        """A trace begins, which can be ended."""
        self._held = False

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
        if again or not self._held:
            self._held = True  # what was interrupted is written now
            raise KeyboardInterrupt
