"""Workers: threads that take pieces of work from one queue, for work on a CPU that is made of independent pieces.

torch spreads one product after the other over its threads, and waits for the slowest at the end of each. Pieces that need
nothing of each other are better done whole, each by one thread: on a busy machine, where a thread may not run for a while,
the others go on. So there are as many workers as torch may use threads, and each has one of these.

What torch 2.13 does with the number (`torch.set_num_threads`): OpenMP and MKL keep it for each thread, and it is set by a call
from that thread. A thread that computes, or asks for the number, for the first time takes what was set last, by whichever
thread, even if it has set a number itself: so a worker asks, and then sets one. That leaves every other thread as it was,
except for those that begin before the number is set again, which is done as soon as workers have begun.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Piece = TypeVar("Piece")
Result = TypeVar("Result")

PATIENCE = 0.1  # seconds between two looks at workers that are to end
_beginning = threading.Lock()  # held while workers begin, so that none takes another's number for the one that was set
_here = threading.local()


class Stopped(BaseException):
    """Nobody waits for this piece any more."""


def workers_on(device: torch.device) -> int:
    """How many workers this thread may have: on a CPU as many as torch may use threads, elsewhere one."""
    if device.type != "cpu":
        return 1
    with _beginning:
        return torch.get_num_threads()


def in_order(work: Callable[[Piece], Result], pieces: Sequence[Piece], n_workers: int) -> Generator[Result, None, None]:
    """work(piece) for each piece, in their order, done by up to `n_workers` threads with one of torch's threads each.

    With one worker the calling thread does the work itself, with its own number of torch's threads. So it does where something
    watches its operations (modes of torch's functions or dispatch), which another thread's would escape.

    A piece that fails is raised in its turn, after the results of those before it; no other is begun then. Whoever ends early,
    by an error, an interrupt or by closing the generator, waits until no piece is under way. A worker records gradients if the
    calling thread does, sees its context variables, and has no autocast, default device or inference mode.
    """
    if n_workers <= 1 or not pieces or _is_watched():
        for piece in pieces:
            yield work(piece)
        return
    crew = _Crew(work, pieces)
    try:
        crew.begin(n_workers)
        for number in range(len(pieces)):
            yield crew.result(number)
    finally:
        crew.end()


def go_on() -> None:
    """Said inside a piece, where it may end: raises Stopped if what it makes is no longer wanted."""
    crew: _Crew[Any, Any] | None = getattr(_here, "crew", None)
    if crew is not None and crew.stopped:
        raise Stopped


def others_are_idle() -> bool:
    """Said inside a piece: whether other workers have nothing to do, and would help (`share`)."""
    crew: _Crew[Any, Any] | None = getattr(_here, "crew", None)
    return crew is not None and crew.idle > 0


def share(work: Callable[[Piece], None], parts: Iterable[Piece]) -> Callable[[], None]:
    """Said inside a piece: work(part) for each part of it, in any order, by workers that are idle while this one goes on.

    Returns what does the parts that are left, waits for those under way, and raises the first error of any.
    """
    crew: _Crew[Any, Any] | None = getattr(_here, "crew", None)
    if crew is None:
        raise RuntimeError("only a piece can share its work")
    batch = _Shared(work, deque(parts))
    crew.offer(batch)
    return partial(crew.finish, batch)


def helped(work: Callable[[Piece], None], parts: Iterable[Piece]) -> None:
    """work(part) for each part, in any order. Inside a piece, workers that are idle take some of them."""
    if getattr(_here, "crew", None) is None:
        for part in parts:
            work(part)
    else:
        share(work, parts)()


def _is_watched() -> bool:
    modes: list[Any] = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    return not all(isinstance(mode, DeviceContext) for mode in modes)


@dataclass(eq=False)
class _Shared:
    """Parts of a piece that are still to be done, and how many are under way."""

    work: Callable[[Any], None]
    parts: deque[Any]
    running: int = 0
    error: BaseException | None = None


class _Crew(Generic[Piece, Result]):
    """Some workers, their queue, and what they have made. What is theirs together changes under `change`."""

    def __init__(self, work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> None:
        self.work, self.pieces = work, pieces
        self.gradients = torch.is_grad_enabled()
        self.change = threading.Condition()
        self.taken = self.busy = self.idle = 0  # pieces taken, pieces under way, workers without one
        self.failed = self.stopped = False  # no further piece is begun; nobody waits any more
        self.shared: list[_Shared] = []
        self.begun = threading.Semaphore(0)
        self.all_begun = threading.Event()
        self.made: SimpleQueue[tuple[int, Result | None, BaseException | None]] = SimpleQueue()
        self.kept: dict[int, tuple[Result | None, BaseException | None]] = {}
        self.threads: list[threading.Thread] = []

    def begin(self, n_workers: int) -> None:
        with _beginning:
            before = torch.get_num_threads()
            try:
                for number in range(n_workers):
                    thread = threading.Thread(target=copy_context().run, args=(self._work,), name=f"worker {number}")
                    thread.start()
                    self.threads.append(thread)
                for _ in self.threads:
                    self.begun.acquire()
            finally:
                torch.set_num_threads(before)
                self.all_begun.set()

    def result(self, number: int) -> Result:
        while number not in self.kept:
            done, made, error = self.made.get()
            self.kept[done] = (made, error)
            del made, error  # whoever gets them may let go of all that they hold
        made, error = self.kept.pop(number)
        if error is not None:
            try:
                raise error
            finally:
                del error  # or the error would hold this frame, and this frame the error
        return cast(Result, made)

    def end(self) -> None:
        """Wait until no worker is left, however often somebody interrupts."""
        interrupted: KeyboardInterrupt | None = None
        self.stopped = True
        for thread in self.threads:
            while thread.is_alive():
                try:
                    with self.change:
                        self.change.notify_all()
                    thread.join(PATIENCE)
                except KeyboardInterrupt as again:
                    interrupted = again
        if interrupted is not None:
            raise interrupted

    def offer(self, batch: _Shared) -> None:
        with self.change:
            self.shared.append(batch)
            self.change.notify_all()

    def finish(self, batch: _Shared) -> None:
        self._help(batch)
        with self.change:
            while batch.running:
                self.change.wait()
            self.shared = [other for other in self.shared if other is not batch]
        if batch.error is not None:
            raise batch.error
        go_on()

    def _work(self) -> None:
        """What a worker does: pieces and parts of others' pieces, until there can be no more."""
        if self.stopped:
            return
        torch.get_num_threads()  # or the first operation here would take the number that was set last, by whomever
        torch.set_num_threads(1)
        self.begun.release()
        # A worker that went to work would take the core from the thread that is still to begin the others: for milliseconds,
        # on a machine with as many cores as workers.
        self.all_begun.wait()
        _here.crew = self
        with torch.set_grad_enabled(self.gradients):
            while (task := self._next()) is not None:
                task()

    def _next(self) -> Callable[[], None] | None:
        with self.change:
            while not self.stopped:
                if self.taken < len(self.pieces) and not self.failed:
                    self.taken, self.busy = self.taken + 1, self.busy + 1
                    return partial(self._do, self.taken - 1)
                if batch := next((batch for batch in self.shared if batch.parts), None):
                    return partial(self._help, batch)
                if not self.busy:
                    break
                self.idle += 1
                self.change.wait()
                self.idle -= 1
        return None

    def _do(self, number: int) -> None:
        """One piece."""
        try:
            self.made.put((number, self.work(self.pieces[number]), None))
        except BaseException as error:
            self.failed = True
            self.made.put((number, None, error))
        with self.change:
            self.busy -= 1
            self.change.notify_all()

    def _help(self, batch: _Shared) -> None:
        """Parts of a piece, as long as some are left."""
        while True:
            with self.change:
                if self.stopped or batch.error is not None or not batch.parts:
                    return
                part = batch.parts.popleft()
                batch.running += 1
            try:
                batch.work(part)
            except BaseException as error:
                batch.error = error
            with self.change:
                batch.running -= 1
                if not batch.running:
                    self.change.notify_all()
