"""A product with a matrix, by the library that is fastest here, or by our own kernel on a GPU.

torch multiplies float32 matrices with MKL, which on Intel's CPUs is the fastest, but keeps to AVX2 on others. oneDNN, which is
part of torch as well, uses AVX-512 wherever there is: twice as fast on AMD's Zen 4 and 5, and 1.3 times slower than MKL on
Intel's Sapphire Rapids. It makes a program for every shape (0.3 ms each, of which it keeps a thousand), so rows come in
multiples of `STEP`: what is multiplied for nothing lies behind x, or is zero. Who made the CPU decides, not a measurement: two
runs on a machine have the same bits.

A GPU multiplies float32 by digits of the weight (attend_back/projections.py), which take about as long to make as a few rows
take to multiply: who multiplies by a weight more than once makes a `factor` of it before.

Letters: M rows, K summed, N columns, W digits.
"""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from circuit_tracer.kernels.device import on_gpu

STEP = 32
FEWEST_ROWS, LEAST_WEIGHTS = 64, 1 << 12  # below, oneDNN takes longer to begin than it saves


def factor(weight_KN: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as rows of a dtype are multiplied by it: on a GPU, by those of float32, its digits (W, K, N) in bfloat16, of
    which a weight in bfloat16 has one, itself; otherwise the weight in that dtype.
    """
    if dtype is not torch.float32 or not on_gpu(weight_KN):
        return weight_KN.to(dtype)
    from circuit_tracer.kernels.attend_back.projections import digits_of

    return digits_of(weight_KN if weight_KN.dtype is torch.bfloat16 else weight_KN.to(dtype))


def product(x_MK: Tensor, weight_KN: Tensor) -> Tensor:
    """x @ weight, a new tensor; x may have more axes in front, and the weight may be a `factor`."""
    if weight_KN.ndim == 3:
        made_MN = x_MK.new_empty(*x_MK.shape[:-1], weight_KN.shape[2])
        _project_(made_MN, x_MK, weight_KN)
        return made_MN
    if not _is_for_onednn(x_MK, weight_KN):
        return x_MK @ weight_KN
    n_rows = x_MK.shape[0]
    made: Tensor = torch.ops.mkldnn._linear_pointwise(
        _lengthened(x_MK, in_steps(n_rows)), weight_KN.T, None, "none", [], ""
    )
    return made[:n_rows]


def add_product_(out_MN: Tensor, x_MK: Tensor, weight_KN: Tensor) -> None:
    """out += x @ weight, in place; the weight may be a `factor`."""
    if weight_KN.ndim == 3:
        _project_(out_MN, x_MK, weight_KN, add=True)
    elif _is_for_onednn(x_MK, weight_KN):
        out_MN += product(x_MK, weight_KN)
    else:
        out_MN.addmm_(x_MK, weight_KN)


def _project_(out_MN: Tensor, x_MK: Tensor, digits_WKN: Tensor, add: bool = False) -> None:
    from circuit_tracer.kernels.attend_back.projections import project_

    # a view: of a copy, which flattening may make, what is written would be lost
    project_(out_MN.view(-1, out_MN.shape[-1]), x_MK.flatten(0, -2), digits_WKN, add)


def in_steps(n_rows: int) -> int:
    """How many rows are multiplied; who allocates as many saves a copy."""
    return -(-n_rows // STEP) * STEP


def _lengthened(x_MK: Tensor, n_rows: int) -> Tensor:
    """x with more rows, whatever they hold: what follows in its memory, where that is long enough."""
    last = x_MK.storage_offset() + n_rows * x_MK.shape[1]
    if x_MK.is_contiguous() and last * x_MK.element_size() <= x_MK.untyped_storage().nbytes():
        return x_MK.as_strided((n_rows, x_MK.shape[1]), x_MK.stride())
    return functional.pad(x_MK, (0, 0, 0, n_rows - x_MK.shape[0]))


def _is_for_onednn(x_MK: Tensor, weight_KN: Tensor) -> bool:
    """Whether the product is of a kind that oneDNN is faster at, on a CPU where it is."""
    large = x_MK.ndim == 2 and x_MK.shape[0] >= FEWEST_ROWS and weight_KN.numel() >= LEAST_WEIGHTS
    return large and _is_plain(x_MK) and _is_plain(weight_KN) and _prefers_onednn()


def _is_plain(tensor: Tensor) -> bool:
    """A float32 matrix on the CPU of which nobody wants a gradient."""
    wanted = tensor.requires_grad and torch.is_grad_enabled()
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not wanted


@cache
def _prefers_onednn() -> bool:
    """Whether oneDNN is there and uses AVX-512 where MKL does not."""
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return wide and there and not (torch.backends.mkl.is_available() and "GenuineIntel" in _made_by())


def _made_by() -> str:
    """A text that names the maker of the CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            return file.read(1024)  # of the first core; all are of one maker
    except OSError:
        return platform.processor()
