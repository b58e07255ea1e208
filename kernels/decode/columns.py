"""The sparse decoder products without Triton: a few columns at a time, packed (README.md, "On a CPU").

Every entry reads a row. Rows of all columns would come from memory for each; a chunk of columns of all rows stays in a core's
cache, once it is copied to one place: in the whole array its rows lie a page apart.

Letters: B tokens, F features, C columns, n entries, w columns of a chunk.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from circuit_tracer.kernels.csr import csr
from circuit_tracer.kernels.sparse_activations import SparseActivations

# What all rows of a chunk take, in a core's second cache beside what is made of them, and the fewest columns of one.
CHUNK_BYTES = 3 * 2**19
MIN_CHUNK = 192
# Chunks whose dot products are summed one after the other; these sums are added in their order.
DOTS_TOGETHER = 4
GATHERED_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Written:
    """What one source writes: rows of ``weight_FC`` go to the columns from ``start`` on."""

    entries: SparseActivations
    weight_FC: Tensor
    start: int


def decode_(out_BC: Tensor, sources: Sequence[Written]) -> None:
    """`decode.decode_sources_`: all sources of a chunk one after the other, while its sums are in the cache."""
    sources = [one for one in sources if one.entries.feature.shape[0]]
    if not sources:
        return
    bags = [_Bags.of_rows(one.entries, out_BC.dtype) for one in sources]
    for columns in chunks(out_BC, max(one.entries.n_features for one in sources)):
        sums_Bw = _packed("sums", out_BC, columns, out_BC.dtype)
        for one, of_rows in zip(sources, bags, strict=True):
            first, last = max(columns.start, one.start), min(columns.stop, one.start + one.weight_FC.shape[1])
            if first < last:
                rows_Fw = _packed("weights", one.weight_FC, slice(first - one.start, last - one.start), out_BC.dtype)
                sums_Bw[:, first - columns.start : last - columns.start] += of_rows.sums(rows_Fw)
        out_BC[:, columns] = sums_Bw


def value_gradients(grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> Tensor:
    """`decode.value_gradients`."""
    if not entries.feature.shape[0]:
        return grad_BC.new_zeros(0)
    if grad_BC.device.type != "cpu":
        return gathered_dots(grad_BC, entries, weight_FC)
    shape = (entries.n_rows, entries.n_features)
    zero = csr(entries.row_ptr, entries.feature, grad_BC.new_zeros(entries.feature.shape[0]), shape)
    all_columns = chunks(grad_BC, max(shape))
    total_n = grad_BC.new_zeros(entries.feature.shape[0])
    for first in range(0, len(all_columns), DOTS_TOGETHER):
        dots = zero
        for columns in all_columns[first : first + DOTS_TOGETHER]:
            grad_Bw = _packed("gradients", grad_BC, columns, grad_BC.dtype)
            rows_Fw = _packed("weights", weight_FC, columns, grad_BC.dtype)
            dots = torch.sparse.sampled_addmm(dots, grad_Bw, rows_Fw.T)
        total_n += dots.values()
    return total_n


def weight_gradients(grad_BC: Tensor, entries: SparseActivations, start: int, stop: int, out_nC: Tensor) -> None:
    """`decode.weight_gradients`, to ``out_nC``."""
    bags = _Bags.of_features(entries, start, stop, grad_BC.dtype)
    if bags is None:
        out_nC.zero_()
        return
    for columns in chunks(grad_BC, grad_BC.shape[0]):
        out_nC[:, columns] = bags.sums(_packed("gradients", grad_BC, columns, grad_BC.dtype))


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

    def sums(self, rows_Rw: Tensor) -> Tensor:
        """In the dtype of the rows."""
        return functional.embedding_bag(
            self.index_n, rows_Rw, self.pointer, per_sample_weights=self.value_n, mode="sum", include_last_offset=True
        )


class _Memory(threading.local):
    """Where a thread packs chunks: fresh memory would cost several times what copying costs."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}


_memory = _Memory()


def _packed(name: str, rows_RC: Tensor, columns: slice, dtype: torch.dtype) -> Tensor:
    """Some columns of all rows in one piece and this dtype: void once the thread packs others under this name."""
    part_Rw = rows_RC[:, columns]
    if part_Rw.dtype == dtype and (part_Rw.is_contiguous() or part_Rw.device.type != "cpu"):
        return part_Rw
    held = _memory.held.get((name, dtype))
    if held is None or held.numel() < part_Rw.numel() or held.device != part_Rw.device:
        held = _memory.held[name, dtype] = part_Rw.new_empty(part_Rw.numel(), dtype=dtype)
    return held[: part_Rw.numel()].view(part_Rw.shape).copy_(part_Rw)
