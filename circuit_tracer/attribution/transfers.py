"""Copies between host and device that neither waits for until it needs them.

On CUDA a copy to the host goes to pinned memory, and an event says when it is there; the host goes on asking for more in the
meantime. What comes from the host in pieces comes on a stream of its own, beside what the device does with the piece
before. On a CPU the tensors are there already, and the same code runs. (No machine with a GPU has run this: what the host
asks for and in which order is tested, and its results.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class Arriving:
    """Tensors on their way to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        # MPS fills what it was not waited for too late
        self._tensors = [tensor.to("cpu", non_blocking=tensor.device.type != "mps") for tensor in tensors]
        self._there: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._there = torch.cuda.Event()
            self._there.record()

    def get(self) -> list[Tensor]:
        """The tensors, as soon as they are there."""
        if self._there is not None:
            self._there.synchronize()
        return self._tensors


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items; each is handed out when the next one has been made."""
    before: list[Item] = []
    for item in items:
        yield from before
        before = [item]
    yield from before


def beside(items: Iterable[Item], device: torch.device, tensors: Callable[[Item], Iterable[Tensor]]) -> Iterator[Item]:
    """The items, made on a stream of their own: while the host reads one and it is copied to the device, that does what was
    asked for with the one before. tensors: those of an item that are on the device.

    What items are made of has to be there: the stream waits for nothing that is still to be done. Two items at most are on the
    device: before a third is made the host waits for what was done with the first.
    """
    if device.type != "cuda":
        yield from items
        return
    own, theirs, left = _own_stream(device), torch.cuda.current_stream(device), iter(items)
    before: torch.cuda.Event | None = None
    while True:
        with torch.cuda.stream(own):
            item = next(left, None)
        if item is None:
            return
        theirs.wait_stream(own)
        for tensor in tensors(item):
            tensor.record_stream(theirs)  # its memory is given to nobody else before that stream is done with it
        yield item
        used = theirs.record_event()
        if before is not None:
            before.synchronize()
        before = used


@cache
def _own_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
