"""`encode` and `encode_top_k` as a Triton kernel, for CUDA tensors (derivation and costs: README.md).

One matrix product whose tiles are compared with the cuts while they are in registers: entries go to slots in the order in which
tiles finish, and from there to their places by token and feature. The result does not depend on that order. Written from the
description in README.md; no other implementation served as a model.

Letters: B tokens, D width, F features, K tiles of features, G groups of features, n entries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_tracer.kernels.launch import (
    BLOCK_SUMMED,
    INTERPRETED,
    accumulator,
    dot,
    product,
    settled,
    tuned,
    unspecialized,
)
from circuit_tracer.kernels.sparse_activations import SparseActivations, largest_of_rows

BLOCK_F = 16 if INTERPRETED else 128
BLOCK_PLACED = 64 if INTERPRETED else 1024  # entries that a program puts in their places
GROUP = 4 if INTERPRETED else 16  # features whose largest pre-activation stands for them in a search for the k largest
# Tiles of tokens that pass over all features together: their inputs stay in the L2 cache.
TILES_TOGETHER = 2 if INTERPRETED else 32
MAX_PRE_ACTIVATIONS = 2**30  # of one launch: numbers of entries stay within 32 bits
NUMBERED = 2**32  # pre-activations of one list
# Room for one entry in so many pre-activations; with more entries than that the product is taken again with room for all.
ROOM = 32


def encode(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, cut_F: Tensor) -> SparseActivations:
    """As `circuit_tracer.kernels.encode.encode`."""
    row_ptr, feature, value = _encode_op(x_BD, weight_FD, bias_F, cut_F)
    return SparseActivations(row_ptr, feature, value, weight_FD.shape[0])


def encode_at_most(
    x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, cut_F: Tensor, room: int, floor_B: Tensor | None = None
) -> tuple[SparseActivations, Tensor]:
    """As `circuit_tracer.kernels.encode.encode_at_most`; of tokens with a floor, only what is not below it."""
    n_rows, n_features = x_BD.shape[0], weight_FD.shape[0]
    n_tiles, device = triton.cdiv(n_features, BLOCK_F), x_BD.device
    n_counts = n_rows * n_tiles
    ptr, feature = torch.zeros(n_counts + 1 + room, dtype=torch.int64, device=device).split([n_counts + 1, room])
    value = _values(x_BD, room).zero_()
    if not (n_counts and room):
        return SparseActivations(ptr.new_zeros(n_rows + 1), feature, value, n_features, exact=False), ptr[-1]
    used_and_counts = torch.zeros(1 + n_counts, dtype=torch.int32, device=device)
    used, count_BK = used_and_counts[:1], used_and_counts[1:].view(n_rows, n_tiles)
    slot_BK = torch.empty_like(count_BK)
    if n_counts * BLOCK_F > NUMBERED:
        raise ValueError(
            f"{n_rows} tokens of {n_features} features are more than {NUMBERED} pre-activations: take fewer tokens"
        )
    listed = torch.empty(room, dtype=torch.int32, device=device)
    listed_value = torch.empty_like(value)
    _list_op(listed_value, listed, count_BK, slot_BK, used, x_BD, weight_FD, bias_F, cut_F, floor_B)
    torch.cumsum(count_BK.flatten(), 0, out=ptr[1:])
    _place_op(feature, value, listed_value, listed, ptr, slot_BK, used)
    row_ptr = ptr[::n_tiles].clamp(max=room)  # what has no room is not pointed at
    return SparseActivations(row_ptr, feature, value, n_features, exact=False), ptr[-1]


def encode_top_k(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, k: int) -> SparseActivations:
    """As `circuit_tracer.kernels.encode.encode_top_k`."""
    room = 2 * k * x_BD.shape[0]
    while True:
        entries, found = encode_top_k_at_most(x_BD, weight_FD, bias_F, k, room)
        n_found, n_entries = torch.stack([found, entries.row_ptr[-1]]).tolist()
        if n_found <= room:
            return entries.first(n_entries)
        room = n_found


def encode_top_k_at_most(
    x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, k: int, room: int
) -> tuple[SparseActivations, Tensor]:
    """As `circuit_tracer.kernels.encode.encode_top_k_at_most`: one product bounds the k-th largest from below, a second finds
    them."""
    zero_F = torch.zeros_like(bias_F)
    if not (x_BD.shape[0] and weight_FD.shape[0]):
        return encode_at_most(x_BD, weight_FD, bias_F, zero_F, room)
    floor_B = _floor_op(x_BD, weight_FD, bias_F, k)
    entries, found = encode_at_most(x_BD, weight_FD, bias_F, zero_F, room, floor_B)
    last_B = largest_of_rows(entries, k)[:, -1]
    return entries.moved_up(entries.value >= last_B[entries.row.clamp(max=entries.n_rows - 1)]), found


@torch.library.custom_op("circuit_tracer_kernels::encode", mutates_args=())
def _encode_op(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, cut_F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(row_ptr, feature, value) of the entries above cut_F. Waits for their number, and where there was no room for them takes
    the product again."""
    n_rows, n_features = x_BD.shape[0], weight_FD.shape[0]
    step = max(1, MAX_PRE_ACTIVATIONS // max(1, n_features))
    ptrs, features, values = [torch.zeros(1, dtype=torch.int64, device=x_BD.device)], [], []
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        room, n_entries = 0, (rows.stop - start) * n_features // ROOM + 1
        while n_entries > room:
            room = n_entries
            entries, found = encode_at_most(x_BD[rows], weight_FD, bias_F, cut_F, room)
            n_entries = int(found)
        ptrs.append(entries.row_ptr[1:] + ptrs[-1][-1])
        features.append(entries.feature[:n_entries])
        values.append(entries.value[:n_entries])
    if not features:
        return ptrs[0], ptrs[0].new_empty(0), _values(x_BD, 0)
    return torch.cat(ptrs), torch.cat(features), torch.cat(values)


@_encode_op.register_fake
def _(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, cut_F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n_entries = torch.library.get_ctx().new_dynamic_size()
    ptr = x_BD.new_empty(x_BD.shape[0] + 1, dtype=torch.int64)
    return ptr, x_BD.new_empty(n_entries, dtype=torch.int64), _values(x_BD, n_entries)


def _values(x_BD: Tensor, n_entries: int | torch.SymInt) -> Tensor:
    dtype = torch.float64 if x_BD.dtype is torch.float64 else torch.float32
    return x_BD.new_empty(n_entries, dtype=dtype)


@torch.library.custom_op(
    "circuit_tracer_kernels::encode_list", mutates_args=("value", "listed", "count_BK", "slot_BK", "used")
)
def _list_op(
    value: Tensor,
    listed: Tensor,
    count_BK: Tensor,
    slot_BK: Tensor,
    used: Tensor,
    x_BD: Tensor,
    weight_FD: Tensor,
    bias_F: Tensor,
    cut_F: Tensor,
    floor_B: Tensor | None,
) -> None:
    """The list of the README, number and value, its counts and places; of blocks of tokens one after the other, in one list.

    An entry's number, modulo 2^32, counts pre-activations token by token, tile by tile, with whole tiles.
    """
    step = max(1, MAX_PRE_ACTIVATIONS // weight_FD.shape[0])
    for start in range(0, x_BD.shape[0], step):
        rows = slice(start, start + step)
        floor = None if floor_B is None else floor_B[rows]
        _launch(
            x_BD[rows],
            weight_FD,
            bias_F,
            cut_F,
            floor,
            value,
            listed,
            count_BK[rows],
            slot_BK[rows],
            used,
            first_row=start,
        )


@torch.library.custom_op("circuit_tracer_kernels::encode_place", mutates_args=("feature", "value"))
def _place_op(
    feature: Tensor, value: Tensor, listed_value: Tensor, listed: Tensor, ptr: Tensor, slot_BK: Tensor, used: Tensor
) -> None:
    """Put the entries of the list where they belong by token and feature."""
    room = feature.shape[0]
    _place[(triton.cdiv(room, BLOCK_PLACED),)](
        feature,
        value,
        listed_value,
        listed,
        ptr,
        slot_BK,
        used,
        room,
        slot_BK.shape[1],
        BLOCK_F=BLOCK_F,
        BLOCK=BLOCK_PLACED,
    )


@unspecialized("room", "n_tiles")
def _place(
    feature: tl.tensor,
    value: tl.tensor,
    listed_value: tl.tensor,
    listed: tl.tensor,
    ptr: tl.tensor,
    slot: tl.tensor,
    used: tl.tensor,
    room: tl.tensor,
    n_tiles: tl.tensor,
    BLOCK_F: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < tl.minimum(tl.load(used), room)
    number = tl.load(listed + at, mask=live, other=0).to(tl.int64) & 0xFFFFFFFF
    tile = number // BLOCK_F
    # tiles begin where their tokens say, and keep the order within them
    place = tl.load(ptr + tile, mask=live, other=0) + at - tl.load(slot + tile, mask=live, other=0)
    live = live & (place < room)
    tl.store(feature + place, (tile % n_tiles) * BLOCK_F + number % BLOCK_F, mask=live)
    tl.store(value + place, tl.load(listed_value + at, mask=live, other=0), mask=live)


@torch.library.custom_op("circuit_tracer_kernels::encode_floor", mutates_args=())
def _floor_op(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, k: int) -> Tensor:
    """(B,) not above the k-th largest pre-activation: the k-th largest among the largest of each group of features."""
    n_rows, n_features = x_BD.shape[0], weight_FD.shape[0]
    n_groups = triton.cdiv(n_features, GROUP)
    floor_B = _values(x_BD, n_rows).fill_(-torch.inf)
    if n_groups < k:
        return floor_B
    step = max(1, MAX_PRE_ACTIVATIONS // n_features)
    for start in range(0, n_rows, step):
        rows = slice(start, start + step)
        largest_BG = _values(x_BD, floor_B[rows].shape[0] * n_groups).view(-1, n_groups)
        unused = torch.empty(1, dtype=torch.int32, device=x_BD.device)
        _launch(x_BD[rows], weight_FD, bias_F, bias_F, None, largest_BG, unused, unused, unused, unused, GROUP)
        floor_B[rows] = torch.topk(largest_BG, k, dim=1, sorted=False).values.amin(1)
    return floor_B


@_floor_op.register_fake
def _(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, k: int) -> Tensor:
    return _values(x_BD, x_BD.shape[0])


def _launch(
    x_BD: Tensor,
    weight_FD: Tensor,
    bias_F: Tensor,
    cut_F: Tensor,
    floor_B: Tensor | None,
    value: Tensor,
    feature: Tensor,
    count_BK: Tensor,
    slot_BK: Tensor,
    used: Tensor,
    group: int = 0,
    first_row: int = 0,
) -> None:
    (n_rows, width), n_features = x_BD.shape, weight_FD.shape[0]
    kind = product(x_BD.dtype, weight_FD.dtype)
    _encode[lambda meta: (triton.cdiv(n_rows, meta["BLOCK_B"]) * triton.cdiv(n_features, BLOCK_F),)](
        value,
        feature,
        count_BK,
        slot_BK,
        used,
        x_BD,
        weight_FD,
        bias_F,
        cut_F,
        _values(x_BD, 0) if floor_B is None else floor_B,
        value.shape[0],
        first_row,
        n_rows,
        n_features,
        width,
        *x_BD.stride(),
        *weight_FD.stride(),
        FLOOR=floor_B is not None,
        GROUP=group,
        PRODUCT=kind,
        TYPE=accumulator(x_BD.dtype),
        TOGETHER=TILES_TOGETHER,
        BLOCK_F=BLOCK_F,
        BLOCK_D=BLOCK_SUMMED[kind],
    )


# Both uses share a configuration, so that they sum alike: the second finds what the first has bounded.
# Two accumulators or halves of operands fill the registers of four warps on sm_80, and on sm_100 the entries of one do: those
# configurations spill and are not tried there. The last one, a small block for many warps, spills nowhere.
CONFIGS = [
    triton.Config({"BLOCK_B": 128}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_B": 128}, num_warps=8, num_stages=4),
    triton.Config({"BLOCK_B": 64}, num_warps=4, num_stages=3),
    # not with four stages: on sm_80 there is no shared memory then for a second program
    triton.Config({"BLOCK_B": 64}, num_warps=8, num_stages=3),
]


@tuned(CONFIGS, triton.Config({"BLOCK_B": 16}), key=["width", "n_features"], sizes=["n_rows"], counts_in=["used"])
@unspecialized("room", "first_row", "n_rows")
def _encode(
    value: tl.tensor,
    feature: tl.tensor,
    count: tl.tensor,
    slot: tl.tensor,
    used: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    cut: tl.tensor,
    floor: tl.tensor,
    room: tl.tensor,
    first_row: tl.tensor,
    n_rows: tl.tensor,
    n_features: tl.tensor,
    width: tl.tensor,
    x_row_stride: tl.tensor,
    x_stride: tl.tensor,
    weight_row_stride: tl.tensor,
    weight_stride: tl.tensor,
    FLOOR: tl.constexpr,
    GROUP: tl.constexpr,
    PRODUCT: tl.constexpr,
    TYPE: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    n_tiles = (n_features + BLOCK_F - 1) // BLOCK_F
    turn, place = tl.program_id(0) // (TOGETHER * n_tiles), tl.program_id(0) % (TOGETHER * n_tiles)
    rows_together = tl.minimum((n_rows + BLOCK_B - 1) // BLOCK_B - turn * TOGETHER, TOGETHER)
    tile = place // rows_together
    row = (turn * TOGETHER + place % rows_together) * BLOCK_B + tl.arange(0, BLOCK_B)
    f = tile * BLOCK_F + tl.arange(0, BLOCK_F)
    live_row, live = row < n_rows, f < n_features
    x_row = x + row.to(tl.int64)[:, None] * x_row_stride
    weight_row = weight + f.to(tl.int64)[None, :] * weight_row_stride
    pre = tl.full((BLOCK_B, BLOCK_F), 0, TYPE)
    rest = tl.full((BLOCK_B, BLOCK_F), 0, TYPE)
    for at in tl.range(0, width, BLOCK_D):
        d = at + tl.arange(0, BLOCK_D)
        inside = d < width
        left = tl.load(x_row + d[None, :] * x_stride, mask=live_row[:, None] & inside[None, :], other=0)
        right = tl.load(weight_row + d[:, None] * weight_stride, mask=live[None, :] & inside[:, None], other=0)
        pre, rest = dot(left, right, pre, rest, PRODUCT)
    pre = settled(pre, rest, PRODUCT)
    pre += tl.load(bias + f, mask=live, other=0).to(TYPE)[None, :]
    if GROUP:
        # NaN is above no cut
        known = tl.where(live[None, :] & (pre == pre), pre, float("-inf"))
        largest = tl.max(tl.reshape(known, (BLOCK_B, BLOCK_F // GROUP, GROUP)), 2)
        n_groups = (n_features + GROUP - 1) // GROUP
        group = tile * (BLOCK_F // GROUP) + tl.arange(0, BLOCK_F // GROUP)
        at_group = value + row.to(tl.int64)[:, None] * n_groups + group[None, :]
        tl.store(at_group, largest, mask=live_row[:, None] & (group < n_groups)[None, :])
    else:
        keep = (pre > tl.load(cut + f, mask=live, other=0).to(TYPE)[None, :]) & live_row[:, None] & live[None, :]
        if FLOOR:
            keep = keep & (pre >= tl.load(floor + row, mask=live_row, other=0).to(TYPE)[:, None])
        kept = keep.to(tl.int32)
        in_row = tl.sum(kept, 1)
        # the last running sum is the total: for the sum itself Triton 3.7 finds no layout on Blackwell
        so_far = tl.cumsum(in_row, 0)
        first = tl.atomic_add(used, tl.max(so_far, 0)) + so_far - in_row
        at_tile = row.to(tl.int64) * n_tiles + tile
        tl.store(count + at_tile, in_row, mask=live_row)
        tl.store(slot + at_tile, first, mask=live_row)
        into = first[:, None] + tl.cumsum(kept, 1) - 1
        keep = keep & (into < room)
        tl.store(value + into, pre, mask=keep)
        number = ((first_row + row) * n_tiles + tile) * BLOCK_F
        tl.store(feature + into, number[:, None] + tl.arange(0, BLOCK_F)[None, :], mask=keep)
