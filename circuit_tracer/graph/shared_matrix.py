"""The dense matrix of a graph's edges, in which others may write, and how such writing is noticed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SharedMatrix:
    """A matrix (N, N) that was handed out, or handed in, and a checksum of its memory at some time.

    torch's own count of changes does not know those made through numpy or `.data`; a checksum, which takes about a seventh
    of a second a gigabyte, does. It is None where memory cannot be read as it lies: then all of the matrix is to be compared.
    """

    matrix: Tensor
    checksum: int | None

    @classmethod
    def now(cls, matrix: Tensor) -> SharedMatrix:
        """The matrix as it is now."""
        if matrix.device.type != "cpu" or not matrix.is_contiguous():
            return cls(matrix, None)
        return cls(matrix, zlib.crc32(matrix.detach().numpy().data) if matrix.numel() else 0)

    def may_differ(self, earlier: SharedMatrix) -> bool:
        """Whether it may have been written in since."""
        return self.checksum is None or self.checksum != earlier.checksum

    def to(self, device: str | torch.device) -> SharedMatrix:
        """On another device; the same where it is there already."""
        moved = self.matrix.to(device)
        return self if moved is self.matrix else SharedMatrix.now(moved)
