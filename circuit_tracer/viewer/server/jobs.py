"""Long work in the background: one job at a time, with progress, streamed text and cancellation."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.viewer.server.problems import Busy, NotThere

State = Literal["running", "done", "failed", "cancelled"]
KEPT = 50
logger = logging.getLogger("circuit_tracer.server")


class Cancelled(Exception):
    """Raised inside a job that was cancelled, where it next reports."""


@dataclass
class Job:
    """One piece of work. `progress` and `write` are for the work itself; they raise Cancelled when it is to end."""

    kind: str
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    state: State = "running"
    stage: str = "starting"
    done: int = 0
    total: int = 0
    text: str = ""
    result: dict[str, Any] | None = None
    error: str | None = None
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    cancelling: bool = False

    def progress(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Say what is being done, and how much of it is."""
        if self.cancelling:
            raise Cancelled
        self.stage, self.done, self.total = stage, done, total

    def write(self, text: str) -> None:
        """Add to the text that is streamed."""
        if self.cancelling:
            raise Cancelled
        self.text += text

    def report(self) -> dict[str, Any]:
        """The job as JSON values."""
        names = ("id", "kind", "state", "stage", "done", "total", "text", "result", "error")
        end = time.monotonic() if self.ended is None else self.ended
        return {**{name: getattr(self, name) for name in names}, "seconds": round(end - self.started, 2)}


class Jobs:
    """The jobs of a server, the last `KEPT` of them."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._doing = ""

    @property
    def busy(self) -> bool:
        """Whether something is being done."""
        return self._lock.locked()

    def start(self, kind: str, work: Callable[[Job], dict[str, Any]]) -> Job:
        """Do `work(job)` in a thread; its value becomes the result. Raises Busy while another job runs."""
        self._acquire(kind)
        job = Job(kind)
        self._jobs[job.id] = job
        for old in list(self._jobs)[:-KEPT]:
            del self._jobs[old]
        try:
            threading.Thread(target=self._run, args=(job, work), name=f"{kind} {job.id}", daemon=True).start()
        except BaseException:
            self._lock.release()
            raise
        return job

    @contextmanager
    def alone(self, kind: str) -> Iterator[None]:
        """Do something at once, while no job runs; Busy otherwise."""
        self._acquire(kind)
        try:
            yield
        finally:
            self._lock.release()

    def find(self, name: str) -> Job:
        """A job by its id; NotThere if there is none."""
        if name not in self._jobs:
            raise NotThere(f"no job {name[:50]!r}; the last {KEPT} are kept while the server runs")
        return self._jobs[name]

    def cancel(self, name: str) -> Job:
        """End a job where it next reports; one that has ended stays as it is."""
        job = self.find(name)
        job.cancelling = True
        return job

    def stop(self, seconds: float) -> bool:
        """Cancel what runs and wait for it; whether it has ended."""
        for job in list(self._jobs.values()):
            job.cancelling = True
        ended = self._lock.acquire(timeout=seconds)
        if ended:
            self._lock.release()
        return ended

    def _acquire(self, kind: str) -> None:
        if not self._lock.acquire(blocking=False):
            raise Busy(f"Server busy: the model is at work on something else ({self._doing}); try again later.")
        self._doing = kind

    def _run(self, job: Job, work: Callable[[Job], dict[str, Any]]) -> None:
        state: State = "failed"
        try:
            job.progress("starting")
            job.result = work(job)
            state = "done"
        except Cancelled:
            state = "cancelled"
        except CircuitTracerError as error:
            job.error = str(error)
        except BaseException as error:  # whatever it is, the job must not seem to run for ever
            logger.exception("%s failed", job.kind)
            job.error = f"{type(error).__name__}: {error} (a failure of ours)"
        finally:
            job.ended = time.monotonic()
            self._lock.release()
            job.state = state  # last: who sees that it ended may start the next
