"""`contract_` and `contract_rows_` as one Triton kernel, for CUDA tensors (derivation and costs: README.md).

Each element of the result belongs to one program: no atomics, two runs are bitwise equal. Written from the description in
README.md; no other implementation served as a model.

Letters: T rows in flight, P positions, D d_model, n sources, N columns of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_tracer.kernels.contract.addressed import AddressedRows
from circuit_tracer.kernels.contract.offsets import on_device
from circuit_tracer.kernels.launch import (
    BLOCK_SUMMED,
    accumulator,
    dot,
    product,
    require_rows,
    settled,
    tuned,
    unspecialized,
)

VECTOR_BYTES = 16  # what one thread reads at once
# Columns from which offsets within a tile, of 128 rows at most, do not fit 32 bits; those of 64 take twice the registers.
WIDE_ROWS = 2**31 // 128


def contract_(
    out_TN: Tensor, g_TPD: Tensor, source_nD: Tensor, source_ptr: Sequence[int], column: Sequence[int]
) -> None:
    """As `circuit_tracer.kernels.contract.contract_`, in one launch."""
    ptr, first = on_device(source_ptr, g_TPD.device), on_device(column, g_TPD.device)
    most = largest(source_ptr[: g_TPD.shape[1] + 1])
    _contract_op(out_TN, g_TPD, [source_nD], ptr, first, None, None, None, most)


def contract_rows_(out_TN: Tensor, g_TPD: Tensor, sources: AddressedRows) -> None:
    """As `circuit_tracer.kernels.contract.contract_rows_`: rows are read where they are stored."""
    _contract_op(
        out_TN,
        g_TPD,
        list(sources.tables),
        on_device(sources.ptr, g_TPD.device),
        sources.column,
        sources.table,
        sources.row,
        sources.scale,
        largest(sources.ptr[: g_TPD.shape[1] + 1]),
    )


def largest(ptr: Sequence[int]) -> int:
    """The most sources that any position has."""
    return max([0, *(stop - start for start, stop in pairwise(ptr))])


@torch.library.custom_op("circuit_tracer_kernels::contract", mutates_args=("out_TN",))
def _contract_op(
    out_TN: Tensor,
    g_TPD: Tensor,
    tables: list[Tensor],
    ptr: Tensor,
    column: Tensor,
    table: Tensor | None,
    row: Tensor | None,
    scale: Tensor | None,
    most: int,
) -> None:
    n_rows, n_pos, width = g_TPD.shape
    if not (n_rows and n_pos and most):
        return
    require_rows(out_TN=out_TN, g_TPD=g_TPD, **{f"tables[{i}]": rows for i, rows in enumerate(tables)})
    kind = product(g_TPD.dtype, tables[0].dtype)
    address, alignment = (None, 1) if table is None or row is None else addresses(tables, table, row)
    _contract[lambda meta: (triton.cdiv(n_rows, meta["BLOCK_T"]), n_pos, triton.cdiv(most, meta["BLOCK_N"]))](
        out_TN,
        g_TPD,
        tables[0],
        address,
        scale,
        column,
        ptr,
        n_rows,
        width,
        out_TN.stride(0),
        g_TPD.stride(0),
        g_TPD.stride(1),
        tables[0].stride(0),
        ADDRESSED=address is not None,
        ALIGNMENT=alignment,
        PRODUCT=kind,
        TYPE=accumulator(g_TPD.dtype, tables[0].dtype),
        OFFSET=tl.int64 if out_TN.stride(0) >= WIDE_ROWS else tl.int32,
        BLOCK_D=BLOCK_SUMMED[kind],
    )


def addresses(tables: Sequence[Tensor], table: Tensor, row: Tensor) -> tuple[Tensor, int]:
    """Where rows begin, (n,) in elements from the first table's first, and a power of two that divides all of these.

    All tables are read through the pointer of the first: a difference of addresses is as good as an index.
    """
    if len(tables) == 1:
        stride = tables[0].stride(0)
        return row * stride, gcd(VECTOR_BYTES // tables[0].element_size(), stride)
    base, size = tables[0].data_ptr(), tables[0].element_size()
    starts = [(rows.data_ptr() - base) // size for rows in tables]
    strides = [rows.stride(0) for rows in tables]
    start, stride = torch.tensor([starts, strides], device=row.device)[:, table]
    return start + row * stride, gcd(VECTOR_BYTES // size, *starts, *strides)


CONFIGS = [
    triton.Config({"BLOCK_T": 64, "BLOCK_N": 64}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_T": 64, "BLOCK_N": 64}, num_warps=4, num_stages=5),
    triton.Config({"BLOCK_T": 128, "BLOCK_N": 64}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_T": 64, "BLOCK_N": 128}, num_warps=8, num_stages=3),
]


@tuned(
    CONFIGS,
    triton.Config({"BLOCK_T": 16, "BLOCK_N": 16}),
    key=["width", "ADDRESSED"],
    sizes=["n_rows"],
    adds_to=["out"],
)
@unspecialized("n_rows", "out_stride")
def _contract(
    out: tl.tensor,
    g: tl.tensor,
    table: tl.tensor,
    address: tl.tensor,
    scale: tl.tensor,
    column: tl.tensor,
    ptr: tl.tensor,
    n_rows: tl.tensor,
    width: tl.tensor,
    out_stride: tl.tensor,
    g_row_stride: tl.tensor,
    g_position_stride: tl.tensor,
    source_stride: tl.tensor,
    ADDRESSED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRODUCT: tl.constexpr,
    TYPE: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    # rows run fastest: programs next to each other read the same sources
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_T
    row = first_row + tl.arange(0, BLOCK_T)
    position = tl.program_id(1).to(tl.int64)
    begin, last = tl.load(ptr + position), tl.load(ptr + position + 1)
    first = begin + tl.program_id(2) * BLOCK_N
    if first < last:
        source = first + tl.arange(0, BLOCK_N)
        live_row, live = row < n_rows, source < last
        if ADDRESSED:
            start = tl.multiple_of(tl.load(address + source, mask=live, other=0), ALIGNMENT)
        else:
            start = source * source_stride
        total = tl.full((BLOCK_T, BLOCK_N), 0, TYPE)
        rest = tl.full((BLOCK_T, BLOCK_N), 0, TYPE)
        for at in tl.range(0, width, BLOCK_D):
            d = at + tl.arange(0, BLOCK_D)
            inside = d < width
            place = g + row[:, None] * g_row_stride + position * g_position_stride + d[None, :]
            left = tl.load(place, mask=live_row[:, None] & inside[None, :], other=0)
            right = tl.load(table + start[None, :] + d[:, None], mask=live[None, :] & inside[:, None], other=0)
            total, rest = dot(left, right, total, rest, PRODUCT)
        total = settled(total, rest, PRODUCT)
        if ADDRESSED:
            total = total * tl.load(scale + source, mask=live, other=0).to(TYPE)[None, :]
            into = tl.load(column + source, mask=live, other=0)
        else:
            into = tl.load(column + position) + source - begin
        offset = tl.arange(0, BLOCK_T).to(OFFSET)[:, None] * out_stride + into.to(OFFSET)[None, :]
        place = out + first_row * out_stride + offset
        mask = live_row[:, None] & live[None, :]
        tl.store(place, tl.load(place, mask=mask).to(TYPE) + total, mask=mask)
