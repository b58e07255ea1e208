"""Pre-activations above a threshold, compacted; the full B x F array never exists (derivation and costs: README.md).

CUDA tensors take the Triton kernel (triton.py), all others torch.

Letters: B tokens, D width, F features, n entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.encode.exact import Cuts, Rows, places
from circuit_tracer.kernels.encode.kept import Kept, Weights, of_one_call
from circuit_tracer.kernels.encode.ranked import largest
from circuit_tracer.kernels.encode.scan import Entries, scan
from circuit_tracer.kernels.sparse_activations import SparseActivations

BLOCK_BYTES = 16 * 2**20  # of pre-activations in hand on a CPU
BLOCK_BYTES_ACCELERATOR = 512 * 2**20


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
        found = largest(weights.rows(x_BD, bias_F), weights.coarse, k)
        if found is not None:
            (row, feature, value), last_B = found
            at = ((value >= last_B[row]) & (value > 0)).nonzero()[:, 0]
            entries = row[at], feature[at], value[at]
            return SparseActivations.from_entries(*entries, len(x_BD), len(weight_FD))
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
    return _above_in_float32(rows, cut_F, cuts) if scanned is None else scanned


def k_largest(rows: Rows, weights: Weights, k: int) -> Entries | None:
    """The k largest pre-activations of each token but zeros, of equal ones the lowest features: (token, feature, value).

    None where k is not small against F: take the product, and the largest of it. Of float32 on a CPU.
    """
    found = largest(rows, weights.coarse, k)
    if found is None:
        return None
    (row, feature, value), last_B = found
    last_n = last_B[row]
    higher, equal = value > last_n, value == last_n
    counts = torch.bincount(row, minlength=len(last_B))
    more = torch.bincount(row[higher], minlength=len(last_B))
    so_far = torch.cat([equal.new_zeros(1, dtype=torch.int64), equal.cumsum(0)])
    before = so_far[counts.cumsum(0) - counts]  # equal ones of the tokens before
    kept = ((higher | (equal & (so_far[1:] - before[row] <= (k - more)[row]))) & (value != 0)).nonzero()[:, 0]
    return row[kept], feature[kept], value[kept]


def _above_in_float32(rows: Rows, cut_F: Tensor, cuts: Cuts) -> Entries:
    """Of the float32 product; what its own rounding leaves open is settled as `scan` does."""
    low_F = cut_F - rows.losing_B.nan_to_num(0).max() * cuts.norm_F.nan_to_num(0) - cuts.besides_F
    row, feature, value = _found(rows.x_BD, rows.weight_FD, rows.bias_F, lambda pre_BF: pre_BF > low_F)
    value, kept = rows.settled(row, feature, cuts, value)
    return row.index_select(0, kept), feature.index_select(0, kept), value.index_select(0, kept)


def _is_settled(x_BD: Tensor, weight_FD: Tensor) -> bool:
    """Whether what rounding leaves open is decided by exact sums."""
    return x_BD.dtype is torch.float32 and x_BD.device.type == "cpu" and bool(x_BD.numel() and weight_FD.numel())


def _compact(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, select: Callable[[Tensor], Tensor]) -> SparseActivations:
    row, feature, value = _found(x_BD, weight_FD, bias_F, select)
    return SparseActivations.from_entries(row, feature, value, x_BD.shape[0], weight_FD.shape[0])


def _found(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, select: Callable[[Tensor], Tensor]) -> Entries:
    """The entries of the product that are selected, block by block of rows."""
    n_features = weight_FD.shape[0]
    weight_FD, bias_F = weight_FD.to(x_BD.dtype), bias_F.to(x_BD.dtype)
    found, values = [], []
    for rows in row_blocks(x_BD, n_features):
        pre_BF = torch.addmm(bias_F, x_BD[rows], weight_FD.T)
        place = places(select(pre_BF))
        values.append(pre_BF.flatten().index_select(0, place))
        found.append(place + rows.start * n_features if rows.start else place)
    if not found:
        empty = torch.empty(0, dtype=torch.int64, device=x_BD.device)
        return empty, empty, x_BD.new_empty(0)
    place = found[0] if len(found) == 1 else torch.cat(found)
    row = torch.div(place, n_features, rounding_mode="floor")
    return row, place - row * n_features, torch.cat(values)


def row_blocks(x_BD: Tensor, n_features: int) -> Iterator[slice]:
    """Slices of rows whose pre-activations take BLOCK_BYTES."""
    budget = BLOCK_BYTES if x_BD.device.type == "cpu" else BLOCK_BYTES_ACCELERATOR
    step = max(1, budget // max(1, n_features * x_BD.element_size()))
    for start in range(0, x_BD.shape[0], step):
        yield slice(start, min(start + step, x_BD.shape[0]))
