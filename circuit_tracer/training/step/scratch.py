"""Memory that is used again from source to source and from step to step."""

from __future__ import annotations

import math

from torch import Tensor

from circuit_tracer import huge_pages
from circuit_tracer.training.sparsity.selection import Rooms


class Scratch:
    """Arrays by name, not initialised. Clearing the fresh pages of a large array can cost as much as the work in it."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}
        self.rooms = Rooms()  # of the searches for active features

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """An array of the dtype and on the device of ``like``; what was taken under this name before is void."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or len(held) < size or (held.dtype, held.device) != (like.dtype, like.device):
            held = self._held[name] = huge_pages.empty((size,), like.dtype, like.device)
        return held[:size].view(shape)
