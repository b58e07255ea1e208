"""The dense matrix of a graph's edges, in which others may write, and how such writing is noticed."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from circuit_tracer.graph.edges import Edges


class SharedMatrix:
    """A matrix (N, N) that was handed out, or handed in. torch's own count of changes does not know those made through
    numpy or `.data`; a checksum of the memory does, and takes a seventh of a second a gigabyte.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self._seen = self._checksum()

    def differs(self, edges: Edges) -> bool:
        """Whether it does not hold these edges, as it did when this was last denied."""
        seen = self._checksum()
        if seen is not None and seen == self._seen:
            return False
        if not edges.equals_dense(self.matrix):
            return True
        self._seen = seen
        return False

    def to(self, device: str | torch.device) -> SharedMatrix:
        moved = self.matrix.to(device)
        return self if moved is self.matrix else SharedMatrix(moved)

    def _checksum(self) -> int | None:
        """None where the memory cannot be read as it lies; then all of it is compared."""
        if self.matrix.device.type != "cpu" or not self.matrix.is_contiguous():
            return None
        return zlib.crc32(self.matrix.detach().numpy().data) if self.matrix.numel() else 0
