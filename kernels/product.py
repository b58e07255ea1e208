"""A product with a matrix, by the library that is fastest here.

torch multiplies float32 matrices with MKL, which keeps to AVX2 on CPUs that are not Intel's. oneDNN, which is part of torch as
well, uses AVX-512 wherever there is: twice as fast on AMD's Zen 4 and 5. It makes a program for every shape (0.3 ms each, of
which it keeps a thousand), so rows come in multiples of `STEP`: what is multiplied for nothing lies behind x, or is zero.

Letters: M rows, K summed, N columns.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

STEP = 32
FEWEST_ROWS, LEAST_WEIGHTS = 64, 1 << 12  # below, oneDNN takes longer to begin than it saves


def product(x_MK: Tensor, weight_KN: Tensor) -> Tensor:
    """x @ weight, a new tensor."""
    small = x_MK.shape[0] < FEWEST_ROWS or weight_KN.numel() < LEAST_WEIGHTS
    if small or not (_is_plain(x_MK) and _is_plain(weight_KN)) or not _has_wide_vectors():
        return x_MK @ weight_KN
    n_rows = x_MK.shape[0]
    made: Tensor = torch.ops.mkldnn._linear_pointwise(
        _lengthened(x_MK, in_steps(n_rows)), weight_KN.T, None, "none", [], ""
    )
    return made[:n_rows]


def in_steps(n_rows: int) -> int:
    """How many rows are multiplied; who allocates as many saves a copy."""
    return -(-n_rows // STEP) * STEP


def _lengthened(x_MK: Tensor, n_rows: int) -> Tensor:
    """x with more rows, whatever they hold: what follows in its memory, where that is long enough."""
    last = x_MK.storage_offset() + n_rows * x_MK.shape[1]
    if x_MK.is_contiguous() and last * x_MK.element_size() <= x_MK.untyped_storage().nbytes():
        return x_MK.as_strided((n_rows, x_MK.shape[1]), x_MK.stride())
    return functional.pad(x_MK, (0, 0, 0, n_rows - x_MK.shape[0]))


def _is_plain(tensor: Tensor) -> bool:
    """A float32 matrix on the CPU of which nobody wants a gradient."""
    wanted = tensor.requires_grad and torch.is_grad_enabled()
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not wanted


@cache
def _has_wide_vectors() -> bool:
    """Whether oneDNN is there and uses AVX-512."""
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
