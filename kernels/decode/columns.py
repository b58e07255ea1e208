"""The sparse decoder products without Triton: a few columns at a time, packed (README.md, "On a CPU").

Every entry reads a row. Rows of all columns would come from memory for each; a chunk of columns of all rows stays in a core's
cache, once it is copied to one place: in the whole array its rows lie a page apart. Workers take chunks; no sum depends on how
many workers there are.

Letters: B tokens, F features, C columns, n entries, w columns of a chunk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from circuit_tracer import huge_pages
from circuit_tracer.kernels.csr import csr
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.workers import in_order, workers_on

# What all rows of a chunk take, in a core's second cache beside what is made of them, and the fewest columns of one.
CHUNK_BYTES = 3 * 2**19
MIN_CHUNK = 128
# Chunks whose dot products are summed one after the other; these sums are added in their order.
DOTS_TOGETHER = 2
GATHERED_BYTES = 128 * 2**20
# Entries a feature up to which rows are read where they lie: packing them pays when most are read more often.
FEW_READS = 6
TOKENS_TOGETHER = 64  # in a piece of work whose rows are read where they lie
LEAST_STRIPE = 64  # columns
SUMS_BYTES = 8 * 2**20  # of sums of features made at a time: more is fresh memory each time
LEAST_WORK = 2**22  # products of a number and a number; with fewer, workers take longer to begin than they save

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Written:
    """What one source writes: rows of ``weight_FC`` go to the columns from ``start`` on."""

    entries: SparseActivations
    weight_FC: Tensor
    start: int

    def part(self, columns: slice) -> tuple[slice, Tensor] | None:
        """Which of some columns of out it writes to, counted from their first, and with which of its weights."""
        first, last = max(columns.start, self.start), min(columns.stop, self.start + self.weight_FC.shape[1])
        if first >= last:
            return None
        mine = slice(first - columns.start, last - columns.start)
        return mine, self.weight_FC[:, first - self.start : last - self.start]


@dataclass(frozen=True)
class Striped:
    """An array (B, C) of which each w columns lie in one piece, for products that read it again and again.

    Attributes:
        array_BC: The array as it was.
        stripe_KBw: (K, B, w), w columns each, K * w = C.
    """

    array_BC: Tensor
    stripe_KBw: Tensor

    @classmethod
    def of(cls, array_BC: Tensor, unit: int, out_n: Tensor) -> Striped | None:
        """In the memory of ``out_n`` (B * C,). None if ``unit`` columns, where parts begin, make no even stripes."""
        n_rows, n_columns = array_BC.shape
        most = max(MIN_CHUNK, CHUNK_BYTES // max(1, n_rows * array_BC.element_size()))
        width = next(w for w in range(min(unit, most), 0, -1) if unit % w == 0)
        if width < min(unit, LEAST_STRIPE):
            return None
        stripe_KBw = out_n.view(n_columns // width, n_rows, width)
        moves = list(zip(stripe_KBw, array_BC.split(width, 1), strict=True))
        _made(lambda move: move[0].copy_(move[1]), moves, array_BC.numel(), array_BC.device)
        return cls(array_BC, stripe_KBw)

    def columns(self, columns: slice) -> Striped:
        """Some columns, from and to multiples of the unit."""
        width = self.stripe_KBw.shape[2]
        return Striped(self.array_BC[:, columns], self.stripe_KBw[columns.start // width : columns.stop // width])

    def pieces(self) -> list[tuple[slice, Tensor]]:
        """Columns and what stands in them, (B, w)."""
        width = self.stripe_KBw.shape[2]
        return [(slice(k * width, (k + 1) * width), stripe_Bw) for k, stripe_Bw in enumerate(self.stripe_KBw)]


def decode_(out_BC: Tensor, sources: Sequence[Written]) -> None:
    """`decode.decode_sources_`: all sources of a chunk one after the other, while its sums are in the cache."""
    sources = [one for one in sources if one.entries.feature.shape[0]]
    if not sources:
        return
    bags = [_Bags.of_rows(one.entries, out_BC.dtype) for one in sources]
    work = sum(one.entries.feature.shape[0] * one.weight_FC.shape[1] for one in sources)
    if all(_read_in_place(one.entries, one.weight_FC, out_BC.dtype) for one in sources):
        _decode_in_place(out_BC, sources, bags, work)
        return
    all_columns = chunks(out_BC, max(one.entries.n_features for one in sources))
    pieces = [(out_BC[:, columns], [one.part(columns) for one in sources]) for columns in all_columns]

    def add(piece: tuple[Tensor, list[tuple[slice, Tensor] | None]]) -> None:
        memory, (out_Bw, parts) = _mine.lent.memory, piece
        sums_Bw = memory.packed("sums", out_Bw, out_Bw.dtype)
        for part, of_rows in zip(parts, bags, strict=True):
            if part is not None:
                columns, weight_Fw = part
                sums_Bw[:, columns].add_(of_rows.sums(memory.packed("weights", weight_Fw, out_Bw.dtype)))
        if sums_Bw is not out_Bw:
            out_Bw.copy_(sums_Bw)

    _made(add, pieces, work, out_BC.device)


def _decode_in_place(out_BC: Tensor, sources: Sequence[Written], bags: Sequence[_Bags], work: int) -> None:
    """`decode_`, some tokens at a time, whole rows."""
    ends = [one.entries.row_ptr.tolist() for one in sources]

    def add(tokens: slice) -> None:
        out_bC = out_BC[tokens]
        for one, of_rows, end in zip(sources, bags, ends, strict=True):
            if end[tokens.start] < end[tokens.stop]:
                sums_bC = of_rows.part(tokens, end).sums(one.weight_FC)
                out_bC[:, one.start : one.start + one.weight_FC.shape[1]].add_(sums_bC)

    _made(add, _blocks(out_BC.shape[0], TOKENS_TOGETHER), work, out_BC.device)


def value_gradients(grad_BC: Tensor | Striped, entries: SparseActivations, weight_FC: Tensor) -> Tensor:
    """`decode.value_gradients`."""
    whole_BC, n = grad_BC.array_BC if isinstance(grad_BC, Striped) else grad_BC, entries.feature.shape[0]
    if not n:
        return whole_BC.new_zeros(0)
    if whole_BC.device.type != "cpu":
        return gathered_dots(whole_BC, entries, weight_FC)
    if _read_in_place(entries, weight_FC, whole_BC.dtype):
        return _dots_in_place(whole_BC, entries, weight_FC)
    shape = (entries.n_rows, entries.n_features)

    def of_group(group: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        memory, dots = _mine.lent.memory, csr(entries.row_ptr, entries.feature, whole_BC.new_zeros(n), shape)
        for grad_Bw, weight_Fw in group:
            packed_Bw = memory.packed("gradients", grad_Bw, whole_BC.dtype)
            packed_Fw = memory.packed("weights", weight_Fw, whole_BC.dtype)
            torch.sparse.sampled_addmm(dots, packed_Bw, packed_Fw.T, out=dots)  # a new one would be a copy first
        return dots.values()

    pairs = [(grad_Bw, weight_FC[:, columns]) for columns, grad_Bw in _pieces(grad_BC, max(shape))]
    groups = [pairs[first : first + DOTS_TOGETHER] for first in range(0, len(pairs), DOTS_TOGETHER)]
    total_n, *others = _made(of_group, groups, n * weight_FC.shape[1], whole_BC.device)
    for dots_n in others:
        total_n += dots_n
    return total_n


def _dots_in_place(grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> Tensor:
    """`value_gradients`, some tokens at a time, whole rows: each is one sum, so pieces change nothing.

    The gradient of the values by which rows are summed in a bag is that very product of a bag's gradient with each row.
    """
    end, feature_n, row_n = entries.row_ptr.tolist(), entries.feature, entries.row

    def of_tokens(tokens: slice) -> Tensor:
        mine = slice(end[tokens.start], end[tokens.stop])
        bag_n = row_n[mine] - tokens.start
        pointer = entries.row_ptr[tokens] - mine.start
        dots_n: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad_BC[tokens], weight_FC, feature_n[mine], pointer, bag_n, 0
        )
        return dots_n

    blocks = _blocks(entries.n_rows, TOKENS_TOGETHER)
    return torch.cat(_made(of_tokens, blocks, len(feature_n) * grad_BC.shape[1], grad_BC.device))


def weight_gradients(
    grad_BC: Tensor | Striped, entries: SparseActivations, start: int, stop: int, out_nC: Tensor
) -> None:
    """`decode.weight_gradients`, to ``out_nC``."""
    bags = _Bags.of_features(entries, start, stop, out_nC.dtype)
    if bags is None:
        out_nC.zero_()
        return

    ends = bags.pointer.tolist()

    def write(piece: tuple[Tensor, Tensor]) -> None:
        out_nw, grad_Bw = piece
        packed_Bw = _mine.lent.memory.packed("gradients", grad_Bw, out_nC.dtype)
        for rows in _blocks(stop - start, max(1, SUMS_BYTES // (out_nw.shape[1] * out_nw.element_size()))):
            out_nw[rows].copy_(bags.part(rows, ends).sums(packed_Bw))

    pieces = [(out_nC[:, columns], grad_Bw) for columns, grad_Bw in _pieces(grad_BC, entries.n_rows)]
    _made(write, pieces, bags.index_n.shape[0] * out_nC.shape[1], out_nC.device)


def gathered_dots(grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> Tensor:
    """`value_gradients` where there are no sampled products: gathers both sides, a block of entries at a time."""
    step = max(1, GATHERED_BYTES // max(1, grad_BC.shape[1] * grad_BC.element_size()))
    parts = [
        (grad_BC[row] * weight_FC[feature].to(grad_BC.dtype)).sum(1)
        for row, feature in zip(entries.row.split(step), entries.feature.split(step), strict=True)
    ]
    return torch.cat(parts)


def chunks(like_BC: Tensor, n_rows: int) -> list[slice]:
    """Column slices of an array, for rows that are as many and of its dtype: narrow on a CPU, all at once elsewhere."""
    n_columns = like_BC.shape[1]
    width = max(MIN_CHUNK, CHUNK_BYTES // max(1, n_rows * like_BC.element_size()))
    if like_BC.device.type != "cpu":
        width = max(1, n_columns)
    return [slice(start, min(start + width, n_columns)) for start in range(0, n_columns, width)]


def _pieces(array_BC: Tensor | Striped, n_rows: int) -> list[tuple[slice, Tensor]]:
    """Columns and what stands in them: stripes, or chunks for so many rows."""
    if isinstance(array_BC, Striped):
        return array_BC.pieces()
    return [(columns, array_BC[:, columns]) for columns in chunks(array_BC, n_rows)]


def _read_in_place(entries: SparseActivations, weight_FC: Tensor, dtype: torch.dtype) -> bool:
    """Whether rows are read so seldom that packing them would cost more, and lie there as they are wanted."""
    few = entries.feature.shape[0] <= FEW_READS * entries.n_features
    return few and weight_FC.device.type == "cpu" and weight_FC.dtype == dtype and weight_FC.is_contiguous()


def _blocks(n_rows: int, together: int) -> list[slice]:
    return [slice(start, min(start + together, n_rows)) for start in range(0, n_rows, together)]


def _made(
    work: Callable[[Piece], Result], pieces: Sequence[Piece], products: int, device: torch.device
) -> list[Result]:
    """What workers make of pieces, once all is made: what torch spreads over its threads would wait for a busy core."""
    return list(in_order(work, pieces, workers_on(device) if products >= LEAST_WORK else 1))


@dataclass(frozen=True)
class _Bags:
    """Sums of value * row over the entries between one pointer and the next."""

    index_n: Tensor
    pointer: Tensor
    value_n: Tensor

    @classmethod
    def of_rows(cls, entries: SparseActivations, dtype: torch.dtype) -> _Bags:
        """A sum a token, of rows of features."""
        return cls(entries.feature.int(), entries.row_ptr.int(), entries.value.to(dtype))

    @classmethod
    def of_features(cls, entries: SparseActivations, start: int, stop: int, dtype: torch.dtype) -> _Bags | None:
        """A sum for each feature from ``start`` to ``stop``, of rows of tokens; None if there is nothing to sum."""
        columns = entries.columns
        first, last = int(columns.feature_ptr[start]), int(columns.feature_ptr[stop])
        if first == last:
            return None
        value_n = entries.value[columns.entry[first:last]].to(dtype)
        return cls(columns.row[first:last].int(), (columns.feature_ptr[start : stop + 1] - first).int(), value_n)

    def part(self, bags: slice, ends: Sequence[int]) -> _Bags:
        """Some of the sums. ends: the pointer, as numbers."""
        mine = slice(ends[bags.start], ends[bags.stop])
        return _Bags(self.index_n[mine], self.pointer[bags.start : bags.stop + 1] - mine.start, self.value_n[mine])

    def sums(self, rows_Rw: Tensor) -> Tensor:
        """In the dtype of the rows."""
        return functional.embedding_bag(
            self.index_n, rows_Rw, self.pointer, per_sample_weights=self.value_n, mode="sum", include_last_offset=True
        )


class _Memory:
    """Where a worker packs chunks: fresh memory would cost several times what copying costs."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}

    def packed(self, name: str, part_Rw: Tensor, dtype: torch.dtype) -> Tensor:
        """Some columns of all rows in one piece and this dtype: void once others are packed under this name."""
        if part_Rw.device.type != "cpu" or (part_Rw.dtype == dtype and part_Rw.is_contiguous()):
            return part_Rw.to(dtype)
        held = self.held.get((name, dtype))
        if held is None or held.shape != part_Rw.shape:
            if held is None or held.untyped_storage().nbytes() < part_Rw.numel() * held.element_size():
                held = huge_pages.empty((part_Rw.numel(),), dtype)
            held = held.as_strided(part_Rw.shape, (part_Rw.shape[1], 1))
            self.held[name, dtype] = held
        return held.copy_(part_Rw)


_free: list[_Memory] = []  # of threads that have ended


class _Mine(threading.local):
    """A thread keeps its memory, which is in its core's cache, from piece to piece, and leaves it to a later thread."""

    def __init__(self) -> None:
        try:
            memory = _free.pop()
        except IndexError:
            memory = _Memory()
        self.lent = _Lent(memory, _free)


class _Lent:
    """Goes when its thread goes."""

    def __init__(self, memory: _Memory, free: list[_Memory]) -> None:
        self.memory, self.free = memory, free

    def __del__(self) -> None:
        self.free.append(self.memory)


_mine = _Mine()
