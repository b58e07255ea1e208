"""Products of sparse activations with wide decoder rows, forward and backward (derivation and costs: README.md).

Letters: B tokens, F features, C columns (all targets of a source, side by side), n entries.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional

from circuit_tracer.kernels.sparse_rows import SparseRows

# Columns read at a time: a slice of all rows that stays in a CPU's cache while every token reads from it.
CHUNK_BYTES = 8 * 2**20
MIN_CHUNK = 256


def decode_(out_BC: Tensor, entries: SparseRows, weight_FC: Tensor) -> None:
    """out[b] += sum over the entries of token b of value * weight[feature], in place.

    out_BC: (B, C) float32 or float64, may be a column slice; products accumulate in its dtype. weight_FC: (F, C) of any
    floating dtype.
    """
    if not entries.feature.shape[0]:
        return
    value = entries.value.to(out_BC.dtype)
    for columns in _chunks(weight_FC):
        out_BC[:, columns] += functional.embedding_bag(
            entries.feature,
            weight_FC[:, columns].to(out_BC.dtype),
            entries.row_ptr,
            per_sample_weights=value,
            mode="sum",
            include_last_offset=True,
        )


def value_gradients(grad_BC: Tensor, entries: SparseRows, weight_FC: Tensor) -> Tensor:
    """<grad[token], weight[feature]> of every entry: (n,), in the dtype of ``grad_BC`` (B, C)."""
    if not entries.feature.shape[0]:
        return grad_BC.new_zeros(0)
    if grad_BC.device.type != "cpu":
        return _gathered_dots(grad_BC, entries, weight_FC)
    shape = (entries.n_rows, entries.n_features)
    dots = _csr(entries, torch.zeros_like(entries.value, dtype=grad_BC.dtype), shape)
    if weight_FC.dtype == grad_BC.dtype:
        return torch.sparse.sampled_addmm(dots, grad_BC, weight_FC.T).values()
    for columns in _chunks(weight_FC):
        dots = torch.sparse.sampled_addmm(dots, grad_BC[:, columns], weight_FC[:, columns].to(grad_BC.dtype).T)
    return dots.values()


def weight_gradients(grad_BC: Tensor, entries: SparseRows, start: int, stop: int) -> Tensor:
    """Rows ``start`` to ``stop`` of the gradient of the decoder: sum over tokens of value * grad[token], (stop - start, C).

    Features sum their tokens in ascending order: deterministic. In the dtype of ``grad_BC`` (B, C).
    """
    columns = entries.columns
    first, last = int(columns.feature_ptr[start]), int(columns.feature_ptr[stop])
    if first == last:
        return grad_BC.new_zeros(stop - start, grad_BC.shape[1])
    return functional.embedding_bag(
        columns.row[first:last],
        grad_BC,
        columns.feature_ptr[start : stop + 1] - first,
        per_sample_weights=entries.value[columns.entry[first:last]].to(grad_BC.dtype),
        mode="sum",
        include_last_offset=True,
    )


def _chunks(weight_FC: Tensor) -> list[slice]:
    """Column slices of the weights that fit a CPU's cache."""
    n_rows, n_columns = weight_FC.shape
    width = max(MIN_CHUNK, CHUNK_BYTES // max(1, n_rows * weight_FC.element_size()))
    if weight_FC.device.type != "cpu":
        width = max(1, n_columns)
    return [slice(start, min(start + width, n_columns)) for start in range(0, n_columns, width)]


def _csr(entries: SparseRows, value: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(entries.row_ptr, entries.feature, value, shape, check_invariants=False)


def _gathered_dots(grad_BC: Tensor, entries: SparseRows, weight_FC: Tensor) -> Tensor:
    """The same by gathering both sides, a block of entries at a time."""
    step = max(1, CHUNK_BYTES * 16 // max(1, grad_BC.shape[1] * grad_BC.element_size()))
    parts = [
        (grad_BC[row] * weight_FC[feature].to(grad_BC.dtype)).sum(1)
        for row, feature in zip(entries.row.split(step), entries.feature.split(step), strict=True)
    ]
    return torch.cat(parts)
