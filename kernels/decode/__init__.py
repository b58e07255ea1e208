"""Products of sparse activations with wide decoder rows, forward and backward (derivation and costs: README.md).

CUDA tensors take the Triton kernels (triton.py), all others torch.

Letters: B tokens, F features, C columns (all targets of a source, side by side), n entries.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from circuit_tracer.kernels.decode import columns
from circuit_tracer.kernels.decode.columns import Written
from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.sparse_activations import SparseActivations


def decode_(out_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> None:
    """out[b] += sum over the entries of token b of value * weight[feature], in place.

    Args:
        out_BC: (B, C) float32 or float64, may be a column slice; products accumulate in its dtype.
        entries: Of tokens and features.
        weight_FC: (F, C) of any floating dtype.

    Examples:
        >>> import torch
        >>> from circuit_tracer.kernels.decode import decode_
        >>> from circuit_tracer.kernels.sparse_activations import SparseActivations
        >>> token, feature, value = torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([1.0, 3.0])
        >>> entries = SparseActivations.from_entries(token, feature, value, n_rows=2, n_features=3)
        >>> out = torch.zeros(2, 3)
        >>> decode_(out, entries, torch.eye(3))
        >>> out.tolist()
        [[0.0, 0.0, 1.0], [3.0, 0.0, 0.0]]
    """
    decode_sources_(out_BC, [Written(entries, weight_FC, 0)])


def decode_sources_(out_BC: Tensor, sources: Sequence[Written]) -> None:
    """`decode_` of several sources, in their order, each to columns of its own: on a CPU each part of out is written once.

    Args:
        out_BC: (B, C) float32 or float64, may be a column slice; products accumulate in its dtype.
        sources: Entries of tokens and features, weights (F, c) of any floating dtype, and where their columns begin in out.
    """
    if on_gpu(out_BC):
        from circuit_tracer.kernels.decode import triton

        for one in sources:
            part_Bc = out_BC[:, one.start : one.start + one.weight_FC.shape[1]]
            triton.decode_(part_Bc, one.entries, one.weight_FC)
    else:
        columns.decode_(out_BC, sources)


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
    return columns.value_gradients(grad_BC, entries, weight_FC)


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
    columns.weight_gradients(grad_BC, entries, start, stop, out_nC)
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
