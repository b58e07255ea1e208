"""`adam_` as a Triton kernel, for CUDA tensors (derivation and costs: README.md). One program a row.

Letters: R rows, C columns, K blocks of a row.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from circuit_tracer.kernels.adam import Rows, Update, packed
from circuit_tracer.kernels.launch import FUSED, kernel, require_rows, unspecialized
from circuit_tracer.kernels.random_bits_triton import noise, rounded

BLOCK_C = packed.BLOCK  # columns in hand: those that share an exponent
KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.uint8: "packed"}


def adam_(rows: Rows, grad_RC: Tensor, update: Update) -> None:
    """As `circuit_tracer.kernels.adam.adam_`."""
    none, no_exponent = grad_RC.new_empty(0), grad_RC.new_empty(0, dtype=torch.uint8)
    _adam_op(
        rows.weight,
        rows.first,
        rows.second,
        no_exponent if rows.first_exponent is None else rows.first_exponent,
        no_exponent if rows.second_exponent is None else rows.second_exponent,
        none if rows.norm is None else rows.norm,
        grad_RC,
        update.rate / update.correction1,
        update.correction2**-0.5,
        update.beta1,
        update.beta2,
        update.eps,
        update.place,
        *update.keys,
    )


@torch.library.custom_op(
    "circuit_tracer_kernels::adam",
    mutates_args=("weight_RC", "first_RC", "second_RC", "first_exponent_RK", "second_exponent_RK", "norm_R"),
)
def _adam_op(
    weight_RC: Tensor,
    first_RC: Tensor,
    second_RC: Tensor,
    first_exponent_RK: Tensor,
    second_exponent_RK: Tensor,
    norm_R: Tensor,
    grad_RC: Tensor,
    rate: float,
    root: float,
    beta1: float,
    beta2: float,
    eps: float,
    place: int,
    weight_key: int,
    first_key: int,
    second_key: int,
) -> None:
    require_rows(weight_RC=weight_RC, first_RC=first_RC, second_RC=second_RC, grad_RC=grad_RC)
    n_rows, width = grad_RC.shape
    if not grad_RC.numel():
        return
    _adam[(n_rows,)](
        weight_RC,
        first_RC,
        second_RC,
        first_exponent_RK,
        second_exponent_RK,
        norm_R,
        grad_RC,
        width,
        weight_RC.stride(0),
        first_RC.stride(0),
        second_RC.stride(0),
        grad_RC.stride(0),
        rate,
        root,
        beta1,
        beta2,
        eps,
        place,
        weight_key,
        first_key,
        second_key,
        ROUND=weight_RC.dtype is torch.bfloat16,
        MOMENTS=KINDS[first_RC.dtype],
        NORM=norm_R.shape[0] > 0,
        ALIGNED=width % 4 == 0 and place % 4 == 0,
        BLOCK_C=BLOCK_C,
        num_warps=2,
        **FUSED,
    )


@_adam_op.register_fake
def _(*args: object) -> None:
    return None


# Scalars that change from step to step must not compile the kernel anew.
@unspecialized("rate", "root", "beta1", "beta2", "eps", "place", "weight_key", "first_key", "second_key")
def _adam(
    weight: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    first_exponent: tl.tensor,
    second_exponent: tl.tensor,
    norm: tl.tensor,
    grad: tl.tensor,
    width: tl.tensor,
    weight_stride: tl.tensor,
    first_stride: tl.tensor,
    second_stride: tl.tensor,
    grad_stride: tl.tensor,
    rate: tl.tensor,
    root: tl.tensor,
    beta1: tl.tensor,
    beta2: tl.tensor,
    eps: tl.tensor,
    place: tl.tensor,
    weight_key: tl.tensor,
    first_key: tl.tensor,
    second_key: tl.tensor,
    ROUND: tl.constexpr,
    MOMENTS: tl.constexpr,
    NORM: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    n_blocks = (width + BLOCK_C - 1) // BLOCK_C
    squares = tl.full((BLOCK_C,), 0, tl.float32)
    for block in tl.range(0, n_blocks):
        column = block * BLOCK_C + tl.arange(0, BLOCK_C)
        inside = column < width
        at = place.to(tl.int64) + row * width + block * BLOCK_C
        at_exponent = row * n_blocks + block
        g = tl.load(grad + row * grad_stride + column, mask=inside, other=0)
        w = tl.load(weight + row * weight_stride + column, mask=inside, other=0).to(tl.float32)
        m = tl.load(first + row * first_stride + column, mask=inside, other=0)
        v = tl.load(second + row * second_stride + column, mask=inside, other=0)
        if MOMENTS == "packed":
            m = unpack(m, tl.load(first_exponent + at_exponent), 15, SIGNED=True)
            v = unpack(v, tl.load(second_exponent + at_exponent), 31, SIGNED=False)
        m, v = m.to(tl.float32), v.to(tl.float32)
        m += (1 - beta1) * (g - m)
        v = beta2 * v + (1 - beta2) * g * g
        w -= rate * m / (tl.sqrt_rn(v) * root + eps)
        if ROUND:
            w = rounded(w, noise(at, weight_key, BLOCK_C, ALIGNED))
        if MOMENTS == "bfloat16":
            m = rounded(m, noise(at, first_key, BLOCK_C, ALIGNED))
            v = rounded(v, noise(at, second_key, BLOCK_C, ALIGNED))
        if MOMENTS == "packed":
            m, m_top = pack(m, noise(at, first_key, BLOCK_C, ALIGNED), 15, SIGNED=True)
            v, v_top = pack(v, noise(at, second_key, BLOCK_C, ALIGNED), 31, SIGNED=False)
            tl.store(first_exponent + at_exponent, m_top.to(tl.uint8))
            tl.store(second_exponent + at_exponent, v_top.to(tl.uint8))
        tl.store(weight + row * weight_stride + column, w.to(weight.dtype.element_ty), mask=inside)
        tl.store(first + row * first_stride + column, m.to(first.dtype.element_ty), mask=inside)
        tl.store(second + row * second_stride + column, v.to(second.dtype.element_ty), mask=inside)
        squares += tl.where(inside, w * w, 0)
    if NORM:
        tl.store(norm + row, tl.sqrt_rn(tl.sum(squares, 0)))


# The numbers of `packed.py`: three bits of mantissa, shared exponents from 64 to 190, largest exponents 15 and 31 (above).
@kernel
def pack(
    values: tl.tensor, random: tl.tensor, LARGEST: tl.constexpr, SIGNED: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """As `packed.pack`, of one block: codes (int32) and the exponent they share."""
    size = tl.abs(values)
    top = (tl.max(size, 0).to(tl.int32, bitcast=True) + 0xFFFFF) >> 23
    top = tl.minimum(tl.maximum(top, 64), 190)
    size = size * power(254 - top)
    random = (random << 4) + 8
    below_normal = tl.floor(size * (8 * (1 << (LARGEST - 1))) + random.to(tl.float32) / 1048576)
    normal = ((size.to(tl.int32, bitcast=True) + random) >> 20) - 8 * (127 - LARGEST)
    code = tl.where(size * (1 << (LARGEST - 1)) < 1, tl.minimum(below_normal, 8).to(tl.int32), normal)
    code = tl.minimum(code, 8 * LARGEST + 7)
    if SIGNED:
        code += tl.where(values < 0, 128, 0)
    else:
        code = tl.where(values > 0, tl.maximum(code, 1), code)
    return code, top


@kernel
def unpack(code: tl.tensor, top: tl.tensor, LARGEST: tl.constexpr, SIGNED: tl.constexpr) -> tl.tensor:
    """As `packed.unpack`, of one block."""
    code = code.to(tl.int32)
    size = code & 127 if SIGNED else code
    normal = ((size + 8 * (127 - LARGEST)) << 20).to(tl.float32, bitcast=True)
    below_normal = size.to(tl.float32) / (8 * (1 << (LARGEST - 1)))
    values = tl.where(size >= 8, normal, below_normal) * power(top.to(tl.int32))
    return tl.where(code >= 128, -values, values) if SIGNED else values


@kernel
def power(exponent: tl.tensor) -> tl.tensor:
    """2^(exponent - 127)."""
    return (exponent << 23).to(tl.float32, bitcast=True)
