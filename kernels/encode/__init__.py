"""Pre-activations above a threshold, compacted; the full B x F array never exists (derivation and costs: README.md).

CUDA tensors take the Triton kernel (triton.py), all others torch.

Letters: B tokens, D width, F features, n entries.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.encode.exact import Rows
from circuit_tracer.kernels.encode.kept import Kept, Weights, of_one_call
from circuit_tracer.kernels.encode.product import Entries, above, found, where
from circuit_tracer.kernels.encode.product import row_blocks as row_blocks
from circuit_tracer.kernels.encode.ranked import largest
from circuit_tracer.kernels.encode.scan import scan
from circuit_tracer.kernels.sparse_activations import SparseActivations


def encode(
    x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, cut_F: Tensor, kept: Kept | None = None
) -> SparseActivations:
    """The entries with pre > cut, pre = x @ weight.T + bias; their value is pre.

    NaN is above no cut. On CUDA ``x_BD`` may be bfloat16 or float16 too; values are float32 then.

    CUDA tensors: Triton, nothing of size B x F is written. Others: blocks of rows; on CPUs with bfloat16 products, scan.py.

    Args:
        x_BD: (B, D) float32 or float64, may be a column slice; products accumulate in its dtype.
        weight_FD: (F, D) of any floating dtype.
        bias_F: (F,).
        cut_F: (F,).
        kept: What is known of these weights from the last call, and is kept for the next one (kept.py).

    Returns:
        The entries, token by token.

    Examples:
        >>> from circuit_tracer.kernels.encode import encode
        >>> found = encode(torch.tensor([[1.0, -1.0]]), torch.eye(2), torch.zeros(2), torch.zeros(2))
        >>> found.feature.tolist(), found.value.tolist()
        ([0], [1.0])
    """
    if on_gpu(x_BD):
        from circuit_tracer.kernels.encode import triton

        return triton.encode(x_BD, weight_FD, bias_F, cut_F)
    cut_F = cut_F.to(x_BD.dtype)
    if not _is_settled(x_BD, weight_FD):
        return _compact(x_BD, weight_FD, bias_F, lambda pre_BF: pre_BF > cut_F)
    weights = (kept.of if kept else of_one_call)(weight_FD, len(x_BD))
    entries = above_cuts(weights.rows(x_BD, bias_F), weights, cut_F)
    return SparseActivations.from_entries(*entries, len(x_BD), len(weight_FD))


def encode_top_k(
    x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, k: int, kept: Kept | None = None
) -> SparseActivations:
    """The k largest positive pre-activations of each token, and those that equal the last of them; NaN is none of them.

    Shapes as in `encode`. CUDA tensors: two products in Triton, nothing of size B x F is written. Others: blocks of rows.

    Args:
        x_BD: (B, D).
        weight_FD: (F, D).
        bias_F: (F,).
        k: How many a token, positive.
        kept: As in `encode`.

    Returns:
        The entries, token by token.
    """
    k = min(k, weight_FD.shape[0])
    if on_gpu(x_BD) and k > 0:
        from circuit_tracer.kernels.encode import triton

        return triton.encode_top_k(x_BD, weight_FD, bias_F, k)

    def largest_of(pre_BF: Tensor) -> Tensor:
        last_B1 = torch.topk(pre_BF, k, dim=1, sorted=False).values.amin(1, keepdim=True)
        if last_B1.isnan().any():
            return largest_of(pre_BF.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf))
        return (pre_BF >= last_B1) & (pre_BF > 0)

    if k == 0:
        return encode(x_BD, weight_FD, bias_F, torch.full_like(bias_F, torch.inf))
    if _is_settled(x_BD, weight_FD):
        weights = (kept.of if kept else of_one_call)(weight_FD, len(x_BD))
        entries = largest(weights.rows(x_BD, bias_F), weights.coarse, k, ties=True)
        if entries is not None:
            return SparseActivations.from_entries(*where(entries[2] > 0, entries), len(x_BD), len(weight_FD))
    return _compact(x_BD, weight_FD, bias_F, largest_of)


def encode_at_most(
    x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, cut_F: Tensor, room: int
) -> tuple[SparseActivations, Tensor]:
    """As `encode`, on a GPU, without waiting for it: entries that are not exact (`SparseActivations`), with room for so many,
    and how many there are (0-d). When these are more than ``room``, the entries are wrong."""
    from circuit_tracer.kernels.encode import triton

    return triton.encode_at_most(x_BD, weight_FD, bias_F, cut_F, room)


def encode_top_k_at_most(
    x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, k: int, room: int
) -> tuple[SparseActivations, Tensor]:
    """The same of `encode_top_k`; room is needed for candidates, somewhat more than k a token. k is positive."""
    from circuit_tracer.kernels.encode import triton

    return triton.encode_top_k_at_most(x_BD, weight_FD, bias_F, min(k, weight_FD.shape[0]), room)


def above_cuts(rows: Rows, weights: Weights, cut_F: Tensor) -> Entries:
    """`encode` of float32 on a CPU: (token, feature, value), each (n,)."""
    cuts, lifted_F = weights.cuts(cut_F, rows.bias_F)
    scanned = None if weights.coarse is None or lifted_F is None else scan(rows, weights.coarse, cuts, lifted_F)
    return above(rows, cuts) if scanned is None else scanned


def k_largest(rows: Rows, weights: Weights, k: int) -> Entries | None:
    """The k largest pre-activations of each token but zeros, of equal ones the lowest features: (token, feature, value).

    None where k is not small against F: take the product, and the largest of it. Of float32 on a CPU.
    """
    entries = largest(rows, weights.coarse, k)
    return None if entries is None else where(entries[2] != 0, entries)


def _is_settled(x_BD: Tensor, weight_FD: Tensor) -> bool:
    """Whether what rounding leaves open is decided by exact sums."""
    return x_BD.dtype is torch.float32 and x_BD.device.type == "cpu" and bool(x_BD.numel() and weight_FD.numel())


def _compact(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, select: Callable[[Tensor], Tensor]) -> SparseActivations:
    row, feature, value = found(x_BD, weight_FD, bias_F, lambda pre_BF, _: select(pre_BF))
    return SparseActivations.from_entries(row, feature, value, x_BD.shape[0], weight_FD.shape[0])
