"""Workers: threads that take pieces of work from one queue, for work on a CPU that is made of independent pieces.

torch spreads one product after the other over its threads, and waits for the slowest at the end of each. Pieces that need
nothing of each other are better done whole, each by one thread: on a busy machine, where a thread may not run for a while,
the others go on. So there are as many workers as torch may use threads, and each has one of these.

What torch 2.13 does with the number (`torch.set_num_threads`): OpenMP and MKL keep it for each thread, and it is set by a call
from that thread; a thread that computes for the first time begins with what was set last, by whichever thread. So a worker
that sets one leaves every other thread as it was, except for those that begin before the number is set again, which is done
as soon as workers have begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Piece = TypeVar("Piece")
Result = TypeVar("Result")

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


def go_on() -> None:
    """Said inside a piece, where it may end: raises Stopped if what it makes is no longer wanted."""
    stopped: threading.Event | None = getattr(_here, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise Stopped


def in_order(work: Callable[[Piece], Result], pieces: Sequence[Piece], n_workers: int) -> Generator[Result, None, None]:
    """work(piece) for each piece, in their order, done by up to `n_workers` threads with one of torch's threads each.

    With one worker the calling thread does the work itself, with its own number of torch's threads. So it does where something
    watches its operations (modes of torch's functions or dispatch), which another thread's would escape.

    A piece that fails is raised in its turn, after the results of those before it; no other is begun then. Whoever ends early,
    by an error, an interrupt or by closing the iterator, waits until no piece is under way. A worker records gradients if the
    calling thread does, sees its context variables, and has no autocast, default device or inference mode.
    """
    if n_workers <= 1 or not pieces or _is_watched():
        for piece in pieces:
            yield work(piece)
        return
    crew = _Crew(work, pieces)
    try:
        crew.begin(min(n_workers, len(pieces)))
        for number in range(len(pieces)):
            yield crew.result(number)
    finally:
        crew.end()


def _is_watched() -> bool:
    modes: list[Any] = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    return not all(isinstance(mode, DeviceContext) for mode in modes)


class _Crew(Generic[Piece, Result]):
    """Some workers, their queue, and what they have made."""

    def __init__(self, work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> None:
        self.work, self.pieces = work, pieces
        self.gradients = torch.is_grad_enabled()
        self.taking, self.numbers = threading.Lock(), iter(range(len(pieces)))
        self.failed, self.stopped = threading.Event(), threading.Event()
        self.begun = threading.Semaphore(0)
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
        self.stopped.set()
        interrupted: KeyboardInterrupt | None = None
        for thread in self.threads:
            while thread.is_alive():
                try:
                    thread.join()
                except KeyboardInterrupt as again:
                    interrupted = again
        if interrupted is not None:
            raise interrupted

    def _work(self) -> None:
        """What a worker does: a piece after the other, until none is left, one has failed, or nobody waits any more."""
        if self.stopped.is_set():
            return
        torch.set_num_threads(1)
        self.begun.release()
        _here.stopped = self.stopped
        with torch.set_grad_enabled(self.gradients):
            while (number := self._take()) is not None:
                try:
                    self.made.put((number, self.work(self.pieces[number]), None))
                except BaseException as error:
                    self.failed.set()
                    self.made.put((number, None, error))

    def _take(self) -> int | None:
        with self.taking:
            return None if self.failed.is_set() or self.stopped.is_set() else next(self.numbers, None)
