"""Tensors that lie in the host's memory, as a device has no room for them, and are worked on there a block at a time.

Blocks are worked on in the same order at every step. So from the second step on, the next block is on its way to the device
while one is worked on, and the one before is on its way back: two buffers by turns, two streams of copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Key = tuple[str, int]  # what a block is of, and its first row


def host_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros in the host's memory for a tensor of a device; pinned, where CUDA copies from it."""
    return torch.zeros(*shape, dtype=dtype, pin_memory=device.type == "cuda")


class Streamed:
    """Blocks on their way to ``device`` and back."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[tuple[int, int], Tensor] = {}  # bytes, by slot and number of the part
        self._order: list[tuple[Key, Sequence[Tensor]]] = []  # blocks of a step
        self._place = 0  # of the next block of this step
        self._slot = 0  # the buffer that the next block goes to
        self._coming: tuple[Key, list[Tensor]] | None = None
        self._there: Any = None  # the event after which what is coming has come
        cuda = device.type == "cuda"
        self._up, self._down = (torch.cuda.Stream(device) if cuda else None for _ in range(2))

    def begin(self) -> None:
        """A step begins."""
        self._place = 0

    @contextmanager
    def borrowed(self, key: Key, parts: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Copies on the device of ``parts``, which lie in the host's memory; what is changed inside goes back."""
        if self._coming is None or self._coming[0] != key:
            self._fetch(key, parts)
        assert self._coming is not None
        (_, copies), self._coming = self._coming, None
        if self._there is not None:
            torch.cuda.current_stream(self.device).wait_event(self._there)
        self._remember(key, parts)
        if self._place < len(self._order) and self._order[self._place][0] != key:
            self._fetch(*self._order[self._place])
        yield copies
        self._give_back(copies, parts)

    def wait(self) -> None:
        """Until all that was changed is in the host's memory."""
        if self._down is not None:
            self._down.synchronize()

    def _remember(self, key: Key, parts: Sequence[Tensor]) -> None:
        if self._place == len(self._order):
            self._order.append((key, parts))
        elif self._order[self._place][0] != key:  # another order than in the steps before: begin to learn it anew
            self._order[self._place :] = [(key, parts)]
        self._place += 1

    def _fetch(self, key: Key, parts: Sequence[Tensor]) -> None:
        """Send a block to the buffer that is free next, once what was there is back."""
        self._slot = 1 - self._slot
        with torch.cuda.stream(self._up):
            if self._up is not None and self._down is not None:
                self._up.wait_stream(self._down)
            copies = [self._room(number, part).copy_(part, non_blocking=True) for number, part in enumerate(parts)]
            self._there = None if self._up is None else self._up.record_event()
        self._coming = key, copies

    def _room(self, number: int, part: Tensor) -> Tensor:
        """Memory on the device for a part, in the buffer of the present slot."""
        held = self._buffers.get((self._slot, number))
        if held is None or len(held) < part.nbytes:
            if held is not None and self._up is not None:
                torch.cuda.synchronize(self.device)  # nobody uses any longer what is given up here
            held = self._buffers[self._slot, number] = torch.empty(part.nbytes, dtype=torch.uint8, device=self.device)
        return held[: part.nbytes].view(part.dtype).view(part.shape)

    def _give_back(self, copies: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
        with torch.cuda.stream(self._down):
            if self._down is not None:
                self._down.wait_stream(torch.cuda.current_stream(self.device))
            for copy, part in zip(copies, parts, strict=True):
                part.copy_(copy, non_blocking=True)
