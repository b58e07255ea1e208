"""Whole numbers that the host counts with and a device reads: it is given them once, not for every launch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from circuit_tracer.kernels.device import sent


class Offsets(list[int]):
    """A list that nobody changes, and the same on a device."""

    def __init__(self, numbers: Iterable[int]) -> None:
        super().__init__(numbers)
        self._there: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """All of them, int64, on a device."""
        if device not in self._there:
            self._there[device] = sent(torch.tensor(self, dtype=torch.int64), device)
        return self._there[device]


def on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers on a device, int64; `Offsets` are there already, unless they are asked for the first time."""
    if isinstance(numbers, Offsets):
        return numbers.on(device)
    return sent(torch.tensor(numbers, dtype=torch.int64), device)
