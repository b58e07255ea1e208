"""A product with a matrix, by the library that is fastest here.

torch multiplies float32 matrices with MKL, which keeps to AVX2 on CPUs that are not Intel's. oneDNN, which is part of torch as
well, uses AVX-512 wherever there is: twice as fast on AMD's Zen 4 and 5. It makes a program for every shape (0.3 ms, and keeps the last
thousand), so callers bring few shapes: see `pieces`.

Letters: M rows, K summed, N columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

FEWEST_ROWS, LEAST_WEIGHTS = 128, 1 << 12  # below, starting oneDNN takes longer than it saves
ROWS = 1024  # of a piece: its products stay in cache


def product(x_MK: Tensor, weight_KN: Tensor) -> Tensor:
    """x @ weight, a new tensor."""
    small = x_MK.shape[0] < FEWEST_ROWS or weight_KN.numel() < LEAST_WEIGHTS
    if small or not (_is_plain(x_MK) and _is_plain(weight_KN)) or not _has_wide_vectors():
        return x_MK @ weight_KN
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x_MK, weight_KN.T, None, "none", [], "")
    return made


def pieces(n: int, most: int) -> Iterator[slice]:
    """0 .. n - 1 in pieces of at most `most`, of few sizes whatever n is: `most`, then as many eighths of it as there are, then
    the rest.
    """
    eighth = max(1, most // 8)
    whole = n - n % eighth
    for start in range(0, whole, 8 * eighth):
        yield slice(start, min(start + 8 * eighth, whole))
    if whole < n:
        yield slice(whole, n)


def _is_plain(tensor: Tensor) -> bool:
    """A float32 matrix on the CPU of which nobody wants a gradient."""
    wanted = tensor.requires_grad and torch.is_grad_enabled()
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not wanted


@cache
def _has_wide_vectors() -> bool:
    """Whether oneDNN is there and uses AVX-512."""
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
