"""`digit_counts` as a Triton kernel, for CUDA tensors (derivation and costs: README.md).

Letters: n keys, V values of a digit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_tracer.kernels.launch import INTERPRETED, kernel

BLOCK_N = 64 if INTERPRETED else 4096  # keys of a program


def digit_counts(key_n: Tensor, high: Tensor, shift: int, bits: int) -> Tensor:
    """As `circuit_tracer.kernels.digits.digit_counts`."""
    count_V = torch.zeros(2**bits, dtype=torch.int64, device=key_n.device)
    _digits_op(count_V, key_n, high, shift, bits)
    return count_V


@torch.library.custom_op("circuit_tracer_kernels::digits", mutates_args=("count_V",))
def _digits_op(count_V: Tensor, key_n: Tensor, high: Tensor, shift: int, bits: int) -> None:
    n_keys = key_n.shape[0]
    if n_keys:
        _digits[(triton.cdiv(n_keys, BLOCK_N),)](
            count_V,
            key_n,
            high,
            n_keys,
            SHIFT=shift,
            BITS=bits,
            HIGHEST=shift + bits >= 8 * key_n.element_size() - 1,
            BLOCK_N=BLOCK_N,
            num_warps=8,
        )


@_digits_op.register_fake
def _(*args: object) -> None:
    return None


@kernel
def _digits(
    count: tl.tensor,
    key: tl.tensor,
    high: tl.tensor,
    n_keys: tl.tensor,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    HIGHEST: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    which = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = which < n_keys
    k = tl.load(key + which, mask=live, other=0)
    if not HIGHEST:
        live = live & ((k >> (SHIFT + BITS)).to(tl.int64) == tl.load(high))
    # others count as zeros, and are taken off again
    digit = tl.where(live, (k >> SHIFT) & ((1 << BITS) - 1), 0).to(tl.int32)
    value = tl.arange(0, 1 << BITS)
    found = tl.histogram(digit, 1 << BITS) - tl.where(value == 0, BLOCK_N - tl.sum(live.to(tl.int32), 0), 0)
    tl.atomic_add(count + value, found.to(tl.int64), mask=found > 0)
