"""Products of sparse activations with wide decoder rows, forward and backward (derivation and costs: README.md).

CUDA tensors take the Triton kernels (triton.py), all others torch.

Letters: B tokens, F features, C columns (all targets of a source, side by side), n entries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from circuit_tracer.kernels.csr import csr
from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.sparse_activations import SparseActivations

# Columns read at a time on a CPU: all rows of so narrow a slice stay in its cache while every entry reads from it.
CHUNK_BYTES = 3 * 2**19
MIN_CHUNK = 128
GATHERED_BYTES = 128 * 2**20


def decode_(out_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> None:
    """out[b] += sum over the entries of token b of value * weight[feature], in place.

    Args:
        out_BC: (B, C) float32 or float64, may be a column slice; products accumulate in its dtype.
        entries: Of tokens and features.
        weight_FC: (F, C) of any floating dtype.

    Examples:
        >>> from circuit_tracer.kernels.decode import decode_
        >>> from circuit_tracer.kernels.sparse_activations import SparseActivations
        >>> token, feature, value = torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([1.0, 3.0])
        >>> entries = SparseActivations.from_entries(token, feature, value, n_rows=2, n_features=3)
        >>> out = torch.zeros(2, 3)
        >>> decode_(out, entries, torch.eye(3))
        >>> out.tolist()
        [[0.0, 0.0, 1.0], [3.0, 0.0, 0.0]]
    """
    if on_gpu(out_BC):
        from circuit_tracer.kernels.decode import triton

        return triton.decode_(out_BC, entries, weight_FC)
    if not entries.feature.shape[0]:
        return None
    value = entries.value.to(out_BC.dtype)
    for columns in _chunks(weight_FC):
        out_BC[:, columns] += _sums(entries.feature, weight_FC[:, columns].to(out_BC.dtype), entries.row_ptr, value)
    return None


def value_gradients(grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> Tensor:
    """<grad[token], weight[feature]> of every entry: (n,), in the dtype of ``grad_BC`` (B, C), which may be a column slice.

    Args:
        grad_BC: (B, C), may be a column slice.
        entries: Of tokens and features.
        weight_FC: (F, C) of any floating dtype.

    Returns:
        (n,) gradients, entry by entry.
    """
    if on_gpu(grad_BC):
        from circuit_tracer.kernels.decode import triton

        return triton.value_gradients(grad_BC, entries, weight_FC)
    if not entries.feature.shape[0]:
        return grad_BC.new_zeros(0)
    if grad_BC.device.type != "cpu":
        return _gathered_dots(grad_BC, entries, weight_FC)
    shape = (entries.n_rows, entries.n_features)
    dots = csr(entries.row_ptr, entries.feature, torch.zeros_like(entries.value, dtype=grad_BC.dtype), shape)
    for columns in _chunks(weight_FC):
        dots = torch.sparse.sampled_addmm(dots, grad_BC[:, columns], weight_FC[:, columns].to(grad_BC.dtype).T)
    return dots.values()


def weight_gradients(
    grad_BC: Tensor, entries: SparseActivations, start: int, stop: int, out_nC: Tensor | None = None
) -> Tensor:
    """Rows ``start`` to ``stop`` of the gradient of the decoder: sum over tokens of value * grad[token], (stop - start, C).

    Features sum their tokens in ascending order: deterministic. In the dtype of ``grad_BC`` (B, C), which may be a column
    slice; written to ``out_nC`` if given: memory used again is much faster than fresh memory.

    Args:
        grad_BC: (B, C), may be a column slice.
        entries: Of tokens and features.
        start: The first row.
        stop: The one behind the last.
        out_nC: (stop - start, C) to write to; memory used again is much faster than fresh memory.

    Returns:
        (stop - start, C), in the dtype of `grad_BC`.
    """
    if on_gpu(grad_BC):
        from circuit_tracer.kernels.decode import triton

        return triton.weight_gradients(grad_BC, entries, start, stop, out_nC)
    if out_nC is None:
        out_nC = grad_BC.new_empty(stop - start, grad_BC.shape[1])
    columns = entries.columns
    first, last = int(columns.feature_ptr[start]), int(columns.feature_ptr[stop])
    if first == last:
        return out_nC.zero_()
    row, feature_ptr = columns.row[first:last], columns.feature_ptr[start : stop + 1] - first
    value = entries.value[columns.entry[first:last]].to(grad_BC.dtype)
    for chunk in _chunks(grad_BC):
        out_nC[:, chunk] = _sums(row, grad_BC[:, chunk], feature_ptr, value)
    return out_nC


def gradients(
    grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor, out_FC: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`value_gradients` and `weight_gradients` of all rows, at once: on CUDA each row of ``grad_BC`` is read once for both.

    The weights' gradient is written to ``out_FC`` (F, C) if given.

    Args:
        grad_BC: (B, C), may be a column slice.
        entries: Of tokens and features.
        weight_FC: (F, C) of any floating dtype.
        out_FC: (F, C) to write to.

    Returns:
        Both.
    """
    if on_gpu(grad_BC):
        from circuit_tracer.kernels.decode import triton

        return triton.gradients(grad_BC, entries, weight_FC, out_FC)
    return value_gradients(grad_BC, entries, weight_FC), weight_gradients(
        grad_BC, entries, 0, entries.n_features, out_FC
    )


def value_sums(entries: SparseActivations) -> Tensor:
    """(F,): the sum of the values of each feature, tokens in ascending order on a GPU: deterministic.

    Args:
        entries: Of tokens and features.

    Returns:
        (F,) sums.
    """
    if on_gpu(entries.value):
        return weight_gradients(entries.value.new_ones(entries.n_rows, 1), entries, 0, entries.n_features)[:, 0]
    return entries.value.new_zeros(entries.n_features).index_add_(0, entries.feature, entries.value)


def _sums(index_n: Tensor, rows_RC: Tensor, pointer: Tensor, value_n: Tensor) -> Tensor:
    """Sums of value * rows[index] over the entries between one pointer and the next."""
    return functional.embedding_bag(
        index_n, rows_RC, pointer, per_sample_weights=value_n, mode="sum", include_last_offset=True
    )


def _chunks(rows_RC: Tensor) -> list[slice]:
    """Column slices of the rows that are read: narrow on a CPU, all at once elsewhere."""
    n_rows, n_columns = rows_RC.shape
    width = max(MIN_CHUNK, CHUNK_BYTES // max(1, n_rows * rows_RC.element_size()))
    if rows_RC.device.type != "cpu":
        width = max(1, n_columns)
    return [slice(start, min(start + width, n_columns)) for start in range(0, n_columns, width)]


def _gathered_dots(grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> Tensor:
    """The same by gathering both sides, a block of entries at a time."""
    step = max(1, GATHERED_BYTES // max(1, grad_BC.shape[1] * grad_BC.element_size()))
    parts = [
        (grad_BC[row] * weight_FC[feature].to(grad_BC.dtype)).sum(1)
        for row, feature in zip(entries.row.split(step), entries.feature.split(step), strict=True)
    ]
    return torch.cat(parts)
