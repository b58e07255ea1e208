"""The sparse decoder products without Triton: some columns of all rows at a time (README.md, "On a CPU").

Sums of rows are products with a sparse matrix, which the library writes to where they belong; dot products are a gradient of
such sums. Both read rows where they lie, unless these have another dtype: then a chunk of them is converted first. Workers
take chunks; no sum depends on how many workers there are.

Letters: B tokens, F features, C columns, n entries, w columns of a chunk, R rows, S sums of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from circuit_tracer import huge_pages
from circuit_tracer.kernels.csr import csr
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.workers import in_order, workers_on

# Columns of a chunk: so many that long pieces come from memory, and of short rows so few that there is work for PARTS workers.
MOST_COLUMNS = 1152
LEAST_COLUMNS = 256
PARTS = 4
# Of a chunk that is converted first, in a core's second cache beside what is made of it, and the fewest columns of one.
CONVERTED_BYTES = 3 * 2**19
LEAST_CONVERTED = 128
GATHERED_BYTES = 128 * 2**20
LEAST_WORK = 2**22  # products of a number and a number; with fewer, workers take longer to begin than they save

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


def decode_(out_BC: Tensor, sources: Sequence[Written]) -> None:
    """`decode.decode_sources_`: all sources of a chunk one after the other, while its sums are in the cache."""
    sources = [one for one in sources if one.entries.feature.shape[0]]
    if not sources:
        return
    sums = [_Sums.of_tokens(one.entries, out_BC.dtype) for one in sources]

    def add(columns: slice) -> None:
        out_Bw = out_BC[:, columns]
        for one, of_tokens in zip(sources, sums, strict=True):
            if (part := one.part(columns)) is not None:
                mine, weight_Fw = part
                of_tokens.to_(out_Bw[:, mine], _mine.lent.memory.converted(weight_Fw, out_BC.dtype), added=True)

    work = sum(one.entries.feature.shape[0] * one.weight_FC.shape[1] for one in sources)
    for _ in _made(add, chunks(out_BC, [one.weight_FC for one in sources]), work, out_BC.device):
        pass


def value_gradients(grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> Tensor:
    """`decode.value_gradients`."""
    feature_n, row_n = entries.feature, entries.row
    if not feature_n.shape[0]:
        return grad_BC.new_zeros(0)
    if grad_BC.device.type != "cpu":
        return gathered_dots(grad_BC, entries, weight_FC)
    # By which numbers rows were summed in a bag: the gradient of these is the dot product of the bag's gradient and each row.
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward

    def of_chunk(columns: slice) -> Tensor:
        weight_Fw = _mine.lent.memory.converted(weight_FC[:, columns], grad_BC.dtype)
        dots_n: Tensor = dots(grad_BC[:, columns], weight_Fw, feature_n, entries.row_ptr[:-1], row_n, 0)
        return dots_n

    work = feature_n.shape[0] * grad_BC.shape[1]
    found = _made(of_chunk, chunks(grad_BC, [weight_FC]), work, grad_BC.device)
    total_n = next(found)
    for dots_n in found:
        total_n += dots_n
    return total_n


def weight_gradients(grad_BC: Tensor, entries: SparseActivations, start: int, stop: int, out_nC: Tensor) -> None:
    """`decode.weight_gradients`, to ``out_nC``."""
    sums = _Sums.of_features(entries, start, stop, grad_BC.dtype)
    if sums is None:
        out_nC.zero_()
        return

    def write(columns: slice) -> None:
        sums.to_(out_nC[:, columns], grad_BC[:, columns], added=False)

    for _ in _made(write, chunks(out_nC, [grad_BC]), sums.index_n.shape[0] * grad_BC.shape[1], grad_BC.device):
        pass


def gathered_dots(grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> Tensor:
    """`value_gradients` on other devices: gathers both sides, a block of entries at a time."""
    step = max(1, GATHERED_BYTES // max(1, grad_BC.shape[1] * grad_BC.element_size()))
    parts = [
        (grad_BC[row] * weight_FC[feature].to(grad_BC.dtype)).sum(1)
        for row, feature in zip(entries.row.split(step), entries.feature.split(step), strict=True)
    ]
    return torch.cat(parts)


def chunks(out_RC: Tensor, rows: Sequence[Tensor]) -> list[slice]:
    """Column slices of an array on a CPU, for products that read such rows; one of all columns elsewhere."""
    n_columns = out_RC.shape[1]
    width = max(LEAST_COLUMNS, min(MOST_COLUMNS, n_columns // PARTS))
    converted = [len(each) for each in rows if each.dtype != out_RC.dtype]
    if converted:
        width = min(width, max(LEAST_CONVERTED, CONVERTED_BYTES // (max(converted) * out_RC.element_size())))
    count = max(1, -(-n_columns // width)) if out_RC.device.type == "cpu" else 1
    width = -(-n_columns // count)
    return [slice(start, min(start + width, n_columns)) for start in range(0, n_columns, width)]


def _made(
    work: Callable[[slice], Result], columns: Sequence[slice], products: int, device: torch.device
) -> Iterator[Result]:
    """What workers make of chunks: what torch spreads over its threads would wait for a busy core."""
    return in_order(work, columns, workers_on(device) if products >= LEAST_WORK else 1)


@dataclass(frozen=True)
class _Sums:
    """Sums of value * row over the entries between one pointer and the next."""

    pointer: Tensor
    index_n: Tensor
    value_n: Tensor

    @classmethod
    def of_tokens(cls, entries: SparseActivations, dtype: torch.dtype) -> _Sums:
        """A sum a token, of rows of features."""
        return cls(entries.row_ptr.int(), entries.feature.int(), entries.value.to(dtype))

    @classmethod
    def of_features(cls, entries: SparseActivations, start: int, stop: int, dtype: torch.dtype) -> _Sums | None:
        """A sum for each feature from ``start`` to ``stop``, of rows of tokens; None if there is nothing to sum."""
        columns = entries.columns
        first, last = int(columns.feature_ptr[start]), int(columns.feature_ptr[stop])
        if first == last:
            return None
        value_n = entries.value[columns.entry[first:last]].to(dtype)
        return cls((columns.feature_ptr[start : stop + 1] - first).int(), columns.row[first:last].int(), value_n)

    def to_(self, out_Sw: Tensor, rows_Rw: Tensor, added: bool) -> None:
        """Write the sums, or add them to what is there. Both of the dtype of the values."""
        if _has_sparse_products(out_Sw.device):
            matrix = csr(self.pointer, self.index_n, self.value_n, (len(out_Sw), len(rows_Rw)))
            torch.addmm(out_Sw, matrix, rows_Rw, beta=int(added), out=out_Sw)
            return
        sums_Sw = functional.embedding_bag(
            self.index_n, rows_Rw, self.pointer, per_sample_weights=self.value_n, mode="sum", include_last_offset=True
        )
        if added:
            out_Sw.add_(sums_Sw)
        else:
            out_Sw.copy_(sums_Sw)


def _has_sparse_products(device: torch.device) -> bool:
    """That write to columns of an array; elsewhere rows are summed in bags."""
    return device.type == "cpu"


class _Memory:
    """Where a worker converts chunks: fresh memory would cost several times what copying costs."""

    def __init__(self) -> None:
        self.held: dict[torch.dtype, Tensor] = {}

    def converted(self, part_Rw: Tensor, dtype: torch.dtype) -> Tensor:
        """Some columns of all rows in this dtype: as they are, or a copy that is void once others are converted."""
        if part_Rw.dtype == dtype or part_Rw.device.type != "cpu":
            return part_Rw.to(dtype)
        held = self.held.get(dtype)
        if held is None or len(held) < part_Rw.numel():
            held = self.held[dtype] = huge_pages.empty((part_Rw.numel(),), dtype)
        return held[: part_Rw.numel()].view(part_Rw.shape).copy_(part_Rw)


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
