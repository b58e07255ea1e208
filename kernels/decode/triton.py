"""The sparse decoder products as Triton kernels, for CUDA tensors (derivation and costs: README.md).

Sums have a fixed order: no float atomics, two runs are bitwise equal. Written from the descriptions in README.md; no other
implementation served as a model.

Letters: B tokens, F features, C columns, n entries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_tracer.kernels.decode.segments import Segments
from circuit_tracer.kernels.launch import FUSED, INTERPRETED, accumulator, require_rows, tuned, unspecialized
from circuit_tracer.kernels.sparse_activations import SparseActivations

BLOCK_N = 8  # entries whose rows are read at once
BLOCK_C = 256 if INTERPRETED else 512  # columns of a gradient's work item


def decode_(out_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> None:
    """As `circuit_tracer.kernels.decode.decode_`: one program a token and block of columns."""
    _decode_op(out_BC, entries.row_ptr, entries.feature, entries.value, weight_FC)


def value_gradients(grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> Tensor:
    """As `circuit_tracer.kernels.decode.value_gradients`: a row of the weights is read once for up to 64 of its entries."""
    return _gradients(grad_BC, entries, weight_FC, 0, entries.n_features, None)


def weight_gradients(
    grad_BC: Tensor, entries: SparseActivations, start: int, stop: int, out_nC: Tensor | None = None
) -> Tensor:
    """As `circuit_tracer.kernels.decode.weight_gradients`."""
    if out_nC is None:
        out_nC = grad_BC.new_empty(stop - start, grad_BC.shape[1])
    _gradients(grad_BC, entries, None, start, stop, out_nC)
    return out_nC


def gradients(
    grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor, out_FC: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `circuit_tracer.kernels.decode.gradients`: a row of the gradient is read once for both."""
    if out_FC is None:
        out_FC = grad_BC.new_empty(entries.n_features, grad_BC.shape[1])
    return _gradients(grad_BC, entries, weight_FC, 0, entries.n_features, out_FC), out_FC


@torch.library.custom_op("circuit_tracer_kernels::decode", mutates_args=("out_BC",))
def _decode_op(out_BC: Tensor, row_ptr: Tensor, feature: Tensor, value: Tensor, weight_FC: Tensor) -> None:
    require_rows(out_BC=out_BC, weight_FC=weight_FC)
    n_rows, width = out_BC.shape
    if not (n_rows and width and feature.shape[0]):
        return
    _decode[lambda meta: (n_rows, triton.cdiv(width, meta["BLOCK_C"]))](
        out_BC,
        row_ptr,
        feature,
        value,
        weight_FC,
        width,
        out_BC.stride(0),
        weight_FC.stride(0),
        width.bit_length(),
        BLOCK_N=BLOCK_N,
    )


DECODE_CONFIGS = [
    triton.Config({"BLOCK_C": 256}, num_warps=2),
    triton.Config({"BLOCK_C": 512}, num_warps=2),
    triton.Config({"BLOCK_C": 512}, num_warps=4),
    triton.Config({"BLOCK_C": 1024}, num_warps=4),
]
GRADIENT_CONFIGS = [triton.Config({"STAGES": stages}, num_warps=4) for stages in (1, 2, 3)]


# Tuned once for widths of like size: a cross-layer transcoder has one for each of its layers.
@tuned(DECODE_CONFIGS, triton.Config({"BLOCK_C": 256}), key=["width_class"], adds_to=["out"])
@unspecialized("width_class")
def _decode(
    out: tl.tensor,
    row_ptr: tl.tensor,
    feature: tl.tensor,
    value: tl.tensor,
    weight: tl.tensor,
    width: tl.tensor,
    out_stride: tl.tensor,
    weight_stride: tl.tensor,
    width_class: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    # tokens run fastest: while they share a block of columns, rows of frequent features stay in the L2 cache
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = columns < width
    first, last = tl.load(row_ptr + row), tl.load(row_ptr + row + 1)
    total = tl.full((BLOCK_N, BLOCK_C), 0, out.dtype.element_ty)
    for start in tl.range(first, last, BLOCK_N):
        entry = start + tl.arange(0, BLOCK_N)
        live = entry < last
        f = tl.load(feature + entry, mask=live, other=0)
        a = tl.load(value + entry, mask=live, other=0).to(total.dtype)
        place = weight + f[:, None] * weight_stride + columns[None, :]
        w = tl.load(place, mask=live[:, None] & inside[None, :], other=0)
        total += a[:, None] * w.to(total.dtype)
    place = out + row * out_stride + columns
    tl.store(place, tl.load(place, mask=inside) + tl.sum(total, 0), mask=inside)


def _gradients(
    grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor | None, start: int, stop: int, out_nC: Tensor | None
) -> Tensor:
    """Gradients of the values (n,), if there are weights; of rows start..stop of the weights, if there is memory for them."""
    columns = entries.columns
    segments = entries.once(f"segments {start} {stop}", lambda: Segments.of(columns, start, stop))
    d_value: Tensor = _gradients_op(
        grad_BC.new_empty(0, grad_BC.shape[1]) if out_nC is None else out_nC,
        grad_BC,
        weight_FC,
        entries.value,
        columns.row,
        columns.entry,
        columns.feature_ptr[start : stop + 1],
        segments.item_feature,
        segments.item_ptr,
        segments.slot_feature,
        segments.slot_ptr,
        start,
        segments.chunk,
        out_nC is not None,
    )
    return d_value


@torch.library.custom_op("circuit_tracer_kernels::decode_gradients", mutates_args=("out_nC",))
def _gradients_op(
    out_nC: Tensor,
    grad_BC: Tensor,
    weight_FC: Tensor | None,
    value: Tensor,
    row: Tensor,
    entry: Tensor,
    feature_ptr: Tensor,
    item_feature: Tensor,
    item_ptr: Tensor,
    slot_feature: Tensor,
    slot_ptr: Tensor,
    start: int,
    chunk: int,
    weights: bool,
) -> Tensor:
    values = weight_FC is not None
    if weight_FC is None:
        weight_FC = grad_BC  # not looked at
    require_rows(grad_BC=grad_BC, weight_FC=weight_FC, out_nC=out_nC)
    n_entries, width = value.shape[0], grad_BC.shape[1]
    summed = torch.float64 if grad_BC.dtype is torch.float64 else torch.float32
    blocks = triton.cdiv(width, BLOCK_C)
    # void entries (`SparseActivations.exact`) have no gradient
    d_value_KN = (torch.zeros if values else torch.empty)(
        blocks, n_entries if values else 0, dtype=summed, device=grad_BC.device
    )
    workspace_WC = torch.empty(slot_feature.shape[0] if weights else 0, width, dtype=summed, device=grad_BC.device)
    if blocks and item_feature.shape[0]:
        _gradients_of_items[(item_feature.shape[0], blocks)](
            d_value_KN,
            out_nC,
            workspace_WC,
            grad_BC,
            weight_FC,
            value,
            row,
            entry,
            feature_ptr,
            item_feature,
            item_ptr,
            slot_ptr,
            width,
            n_entries,
            feature_ptr.shape[0] - 1,
            out_nC.stride(0),
            grad_BC.stride(0),
            weight_FC.stride(0),
            start,
            width.bit_length(),
            VALUES=values,
            WEIGHTS=weights,
            TYPE=accumulator(grad_BC.dtype),
            CHUNK=chunk,
            BLOCK_N=BLOCK_N,
            BLOCK_C=BLOCK_C,
        )
    if weights and blocks and slot_feature.shape[0]:
        _sum_of_chunks[(slot_feature.shape[0], blocks)](
            out_nC,
            workspace_WC,
            slot_feature,
            slot_ptr,
            width,
            feature_ptr.shape[0] - 1,
            out_nC.stride(0),
            BLOCK_N=BLOCK_N,
            BLOCK_C=BLOCK_C,
            **FUSED,
        )
    return d_value_KN.sum(0).to(grad_BC.dtype) if values else grad_BC.new_empty(0)


@_gradients_op.register_fake
def _(out_nC: Tensor, grad_BC: Tensor, weight_FC: Tensor | None, value: Tensor, *rest: object) -> Tensor:
    return grad_BC.new_empty(0 if weight_FC is None else value.shape[0])


@tuned(GRADIENT_CONFIGS, triton.Config({"STAGES": 1}), key=["width_class"])
@unspecialized("n_entries", "n_features", "start", "width_class")
def _gradients_of_items(
    d_value: tl.tensor,
    d_weight: tl.tensor,
    workspace: tl.tensor,
    grad: tl.tensor,
    weight: tl.tensor,
    value: tl.tensor,
    row: tl.tensor,
    entry: tl.tensor,
    feature_ptr: tl.tensor,
    item_feature: tl.tensor,
    item_ptr: tl.tensor,
    slot_ptr: tl.tensor,
    width: tl.tensor,
    n_entries: tl.tensor,
    n_features: tl.tensor,
    out_stride: tl.tensor,
    grad_stride: tl.tensor,
    weight_stride: tl.tensor,
    start: tl.tensor,
    width_class: tl.tensor,
    VALUES: tl.constexpr,
    WEIGHTS: tl.constexpr,
    TYPE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    # items run fastest: a block of columns of all gradients stays in the L2 cache while every feature reads from it
    item, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    f = tl.load(item_feature + item)
    if f < n_features:
        columns = block * BLOCK_C + tl.arange(0, BLOCK_C)
        inside = columns < width
        chunk = item - tl.load(item_ptr + f)
        first = tl.load(feature_ptr + f) + chunk * CHUNK
        last = tl.minimum(first + CHUNK, tl.load(feature_ptr + f + 1))
        if VALUES:
            w = tl.load(weight + (start + f) * weight_stride + columns, mask=inside, other=0).to(TYPE)
        total = tl.full((BLOCK_N, BLOCK_C), 0, TYPE)
        for at in tl.range(first, last, BLOCK_N, num_stages=STAGES):
            which = at + tl.arange(0, BLOCK_N)
            live = which < last
            e = tl.load(entry + which, mask=live, other=0)
            b = tl.load(row + which, mask=live, other=0)
            place = grad + b[:, None] * grad_stride + columns[None, :]
            g = tl.load(place, mask=live[:, None] & inside[None, :], other=0).to(TYPE)
            if WEIGHTS:
                a = tl.load(value + e, mask=live, other=0).to(TYPE)
                total += a[:, None] * g
            if VALUES:
                tl.store(d_value + block.to(tl.int64) * n_entries + e, tl.sum(g * w[None, :], 1), mask=live)
        if WEIGHTS:
            row_sum = tl.sum(total, 0)
            slot = tl.load(slot_ptr + f)
            if tl.load(slot_ptr + f + 1) > slot:
                tl.store(workspace + (slot + chunk) * width + columns, row_sum, mask=inside)
            else:
                tl.store(d_weight + f * out_stride + columns, row_sum, mask=inside)


@unspecialized("n_features")
def _sum_of_chunks(
    d_weight: tl.tensor,
    workspace: tl.tensor,
    slot_feature: tl.tensor,
    slot_ptr: tl.tensor,
    width: tl.tensor,
    n_features: tl.tensor,
    out_stride: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    # the program of a feature's first row sums them all
    first = tl.program_id(0).to(tl.int64)
    f = tl.load(slot_feature + first)
    if (f < n_features) & (tl.load(slot_ptr + f) == first):
        columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        inside = columns < width
        last = tl.load(slot_ptr + f + 1)
        total = tl.full((BLOCK_N, BLOCK_C), 0, workspace.dtype.element_ty)
        for at in tl.range(first, last, BLOCK_N):
            slot = at + tl.arange(0, BLOCK_N)
            place = workspace + slot[:, None] * width + columns[None, :]
            total += tl.load(place, mask=(slot < last)[:, None] & inside[None, :], other=0)
        tl.store(d_weight + f * out_stride + columns, tl.sum(total, 0), mask=inside)
