"""Matrix products of float32 rows by tensor cores, to float32's accuracy, as a Triton kernel (derivation and bound: README.md).

A factor is the sum of three bfloat16 numbers, its digits. Of the nine products of digits six are made, and three of a weight
that is in bfloat16, each exactly, summed in float32. Digits of weights are made before (they are few), those of rows in
registers.

Letters: n rows, K summed, N columns of the result, W digits of the weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_tracer.kernels.launch import (
    BLOCK_SUMMED,
    UPCAST,
    cut,
    kernel,
    require_rows,
    settled,
    tuned,
    unspecialized,
)


def digits_of(weight_KN: Tensor) -> Tensor:
    """(W, K, N) bfloat16: one of bfloat16 weights, three of float32, which sum to the weight exactly."""
    if weight_KN.dtype is torch.bfloat16:
        return weight_KN[None]
    digits_WKN = weight_KN.new_empty(3, *weight_KN.shape, dtype=torch.bfloat16)
    left = weight_KN
    for digit in digits_WKN:
        digit.copy_(left)
        left = left - digit
    return digits_WKN


def project_(out_nN: Tensor, row_nK: Tensor, weight_KN: Tensor, add: bool = False) -> None:
    """out = row @ weight, or out += row @ weight; rows and result in float32, weights in float32 or bfloat16, or as digits
    (W, K, N) that were made before.
    """
    _project_op(out_nN, row_nK, weight_KN if weight_KN.ndim == 3 else digits_of(weight_KN), add)


@torch.library.custom_op("circuit_tracer_kernels::attend_back_project", mutates_args=("out_nN",))
def _project_op(out_nN: Tensor, row_nK: Tensor, digits_WKN: Tensor, add: bool) -> None:
    require_rows(out_nN=out_nN, row_nK=row_nK)
    n_rows, width = row_nK.shape
    n_columns = out_nN.shape[1]
    if not (n_rows and n_columns):
        return
    _project[lambda meta: (triton.cdiv(n_columns, meta["BLOCK_C"]) * triton.cdiv(n_rows, meta["BLOCK_R"]),)](
        out_nN,
        row_nK,
        digits_WKN,
        n_rows,
        n_columns,
        width,
        out_nN.stride(0),
        row_nK.stride(0),
        *digits_WKN.stride(),
        DIGITS=digits_WKN.shape[0],
        ADD=add,
        BLOCK_K=BLOCK_SUMMED["split"],
    )


CONFIGS = [
    triton.Config({"BLOCK_R": 128, "BLOCK_C": 128}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_R": 128, "BLOCK_C": 64}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_R": 64, "BLOCK_C": 128}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_R": 64, "BLOCK_C": 64}, num_warps=4, num_stages=3),
]


@tuned(
    CONFIGS,
    triton.Config({"BLOCK_R": 16, "BLOCK_C": 16}),
    key=["width", "n_columns"],
    sizes=["n_rows"],
    adds_to=["out"],
)
@unspecialized("n_rows")
def _project(
    out: tl.tensor,
    row: tl.tensor,
    digits: tl.tensor,
    n_rows: tl.tensor,
    n_columns: tl.tensor,
    width: tl.tensor,
    out_stride: tl.tensor,
    row_stride: tl.tensor,
    digit_stride: tl.tensor,
    weight_row: tl.tensor,
    weight_column: tl.tensor,
    DIGITS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    # columns run fastest: programs next to each other read the same rows, and all digits of weights stay in the L2 cache
    n_tiles = (n_columns + BLOCK_C - 1) // BLOCK_C
    first_row, first_column = tl.program_id(0) // n_tiles * BLOCK_R, tl.program_id(0) % n_tiles * BLOCK_C
    r, c, k = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    live_row, live_column = first_row + r < n_rows, first_column + c < n_columns
    row += first_row.to(tl.int64) * row_stride
    total = tl.full((BLOCK_R, BLOCK_C), 0, tl.float32)
    rest = tl.full((BLOCK_R, BLOCK_C), 0, tl.float32)
    for at in tl.range(0, width, BLOCK_K):
        inside = at + k < width
        left = tl.load(
            row + r[:, None] * row_stride + (at + k)[None, :], mask=live_row[:, None] & inside[None, :], other=0
        )
        place = digits + (at + k)[:, None] * weight_row + (first_column + c)[None, :] * weight_column
        mask = inside[:, None] & live_column[None, :]
        right = tl.load(place, mask=mask, other=0)
        high, middle, low = cut(left)
        # the smallest first
        if DIGITS == 3:
            right_middle = tl.load(place + digit_stride, mask=mask, other=0)
            right_low = tl.load(place + 2 * digit_stride, mask=mask, other=0)
            rest = of_digits(high, right_low, of_digits(middle, right_middle, rest))
        rest = of_digits(middle, right, of_digits(low, right, rest))
        if DIGITS == 3:
            rest = of_digits(high, right_middle, rest)
        total = of_digits(high, right, total)
    total = settled(total, rest, "split")
    place = out + first_row.to(tl.int64) * out_stride + r[:, None] * out_stride + (first_column + c)[None, :]
    mask = live_row[:, None] & live_column[None, :]
    if ADD:
        total += tl.load(place, mask=mask, other=0)
    tl.store(place, total, mask=mask)


@kernel
def of_digits(left: tl.tensor, right: tl.tensor, total: tl.tensor) -> tl.tensor:
    """total + left @ right, of bfloat16 numbers."""
    if UPCAST:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total)
