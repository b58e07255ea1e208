"""How often each digit occurs among keys, for radix selection (derivation and costs: README.md).

CUDA tensors take the Triton kernel (triton.py), all others torch.

Letters: n keys, V values of a digit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.kernels.device import on_gpu


def digit_counts(key_n: Tensor, high: Tensor, shift: int, bits: int) -> Tensor:
    """(2^bits,) int64: for each value of the ``bits`` bits from ``shift`` on, how many keys have it and ``high`` above it.

    Args:
        key_n: (n,) int32 or int64, not negative.
        high: (1,) int64.
        shift: Lowest bit of the digit.
        bits: Of the digit.

    Returns:
        (2^bits,) int64.
    """
    if on_gpu(key_n):
        from circuit_tracer.kernels.digits import triton

        return triton.digit_counts(key_n, high, shift, bits)
    above = shift + bits
    if above < 8 * key_n.element_size() - 1:  # else no bit of a key is above the digit
        key_n = key_n[key_n >> above == high]
    return torch.bincount((key_n >> shift) & (2**bits - 1), minlength=2**bits)
