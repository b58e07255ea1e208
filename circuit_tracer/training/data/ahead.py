"""Things made by a thread before they are asked for, in the same order as without it.

On CUDA the thread has a stream of its own: what it queues runs beside the training step.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class _Made:
    """What one call of the maker gave: an item, None at the end, or an error."""

    item: Any
    error: BaseException | None = None
    ready: Any = None  # the event after which an item's tensors are written, on CUDA


class Ahead(Generic[T]):
    """What ``make`` returns, call by call, until it returns None. At most ``depth`` items exist that nobody has asked for, one
    being made included; with depth 0 there is no thread.

    ``tensors``: those of an item that lie on ``device``. An error of ``make`` is raised where its item is asked for, and
    again by every call after it. The maker must not hold this object: when it is forgotten, the thread ends.
    """

    def __init__(
        self,
        make: Callable[[], T | None],
        depth: int,
        device: torch.device,
        tensors: Callable[[T], Iterable[Tensor]] = lambda _: (),
    ) -> None:
        self._make, self._tensors = make, tensors
        self._last: _Made | None = None  # the end or an error
        self._thread: threading.Thread | None = None
        if depth:
            self._made: SimpleQueue[_Made] = SimpleQueue()
            self._room, self._stop = threading.Semaphore(depth), threading.Event()
            work = (make, self._made, self._room, self._stop, _numbered(device))
            self._thread = threading.Thread(target=_work, args=work, name="ahead", daemon=True)
            weakref.finalize(self, _end, self._stop, self._room)
            self._thread.start()

    def next(self) -> T | None:
        """The next item, waited for if need be; None behind the last one."""
        if self._thread is None:
            return self._make()
        made = self._last or self._made.get()
        if made.item is None:
            self._last = made
        if made.error is not None:
            raise made.error
        self._room.release()
        item: T | None = made.item
        if item is not None and made.ready is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(made.ready)
            for tensor in self._tensors(item):
                tensor.record_stream(stream)  # its memory is not used again before this stream is through with it
        return item

    def close(self, patience: float | None = None) -> None:
        """End the thread: wait for the item in hand, at most ``patience`` seconds. What nobody has asked for is forgotten."""
        if self._thread is not None:
            _end(self._stop, self._room)
            self._thread.join(patience)


def _work(
    make: Callable[[], Any],
    made: SimpleQueue[_Made],
    room: threading.Semaphore,
    stop: threading.Event,
    device: torch.device,
) -> None:
    with torch.no_grad(), _own_stream(device) as stream:
        while True:
            room.acquire()
            if stop.is_set():
                return
            try:
                item = make()
            except BaseException as error:
                made.put(_Made(None, error))
                return
            made.put(_Made(item, ready=None if stream is None else stream.record_event()))
            if item is None:
                return
            del item


@contextmanager
def _own_stream(device: torch.device) -> Iterator[Any]:
    if device.type != "cuda":
        yield None
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))  # what the maker starts from may still be being written
    with torch.cuda.stream(stream):
        yield stream


def _numbered(device: torch.device) -> torch.device:
    """The device of this thread by its number: another thread's current device is another one."""
    return (
        torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device
    )


def _end(stop: threading.Event, room: threading.Semaphore) -> None:
    stop.set()
    room.release()
