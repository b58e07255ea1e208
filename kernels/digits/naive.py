"""Specification of `digit_counts`."""

from __future__ import annotations

import torch
from torch import Tensor


def digit_counts(key_n: Tensor, high: Tensor, shift: int, bits: int) -> Tensor:
    """One key after the other. Shapes as in `circuit_tracer.kernels.digits.digit_counts`."""
    counts = torch.zeros(2**bits, dtype=torch.int64)
    for key in key_n.tolist():
        if key >> (shift + bits) == int(high):
            counts[(key >> shift) % 2**bits] += 1
    return counts
