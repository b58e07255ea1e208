"""Copies from a device that the host does not wait for until it needs them.

On CUDA a copy goes to pinned memory, and an event says when it is there; the host goes on asking for more in the meantime. On a
CPU the tensors are there already, and the same code runs. (No machine with a GPU has run this: what the host asks for and in
which order is tested, and its results.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
