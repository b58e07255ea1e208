"""Pre-activations above a threshold, compacted; the full B x F array never exists (derivation and costs: README.md).

CUDA tensors take the Triton kernel (triton.py), all others torch.

Letters: B tokens, D width, F features, n entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.encode.exact import Rows
from circuit_tracer.kernels.encode.kept import Kept, made
from circuit_tracer.kernels.encode.ranked import largest
from circuit_tracer.kernels.encode.scan import MAX_ACTIVE, above, scan
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
    norm_F, coarse = (kept.of if kept else made)(weight_FD, x_BD.shape[0])
    rows = Rows(x_BD.contiguous(), weight_FD, bias_F, norm_F)
    scanned = None if coarse is None else scan(rows, coarse, cut_F)
    return _above_in_float32(rows, cut_F) if scanned is None else scanned


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
        kept: What `encode` keeps.

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
    found = _largest(x_BD, weight_FD, bias_F, k, kept)
    if found is None:
        return _compact(x_BD, weight_FD, bias_F, largest_of)
    entries, last_B1 = found
    return entries.keep((entries.value >= last_B1[entries.row, 0]) & (entries.value > 0))


def encode_k_largest(
    x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, k: int, kept: Kept | None = None
) -> SparseActivations | None:
    """Exactly the k largest pre-activations of each token, of whatever sign, of equal ones those of the lowest features.

    None where k is not small against F, or what is given is not finite: take the product, and the largest of it. Shapes as in
    `encode`; on a CPU, in float32.
    """
    found = _largest(x_BD, weight_FD, bias_F, k, kept)
    if found is None:
        return None
    entries, last_B1 = found
    last_n = last_B1[entries.row, 0]
    equal = entries.value == last_n
    more = torch.bincount(entries.row[entries.value > last_n], minlength=entries.n_rows)
    so_far = equal.cumsum(0)
    before = torch.cat([so_far.new_zeros(1), so_far])[entries.row_ptr[:-1]]
    first = so_far - before[entries.row] <= (k - more)[entries.row]
    return entries.keep((entries.value > last_n) | (equal & first))


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


def _largest(
    x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, k: int, kept: Kept | None
) -> tuple[SparseActivations, Tensor] | None:
    if not _is_settled(x_BD, weight_FD):
        return None
    norm_F, coarse = (kept.of if kept else made)(weight_FD, x_BD.shape[0])
    return largest(Rows(x_BD.contiguous(), weight_FD, bias_F, norm_F), coarse, k)


def _is_settled(x_BD: Tensor, weight_FD: Tensor) -> bool:
    """Whether what rounding leaves open is decided by exact sums."""
    return x_BD.dtype is torch.float32 and x_BD.device.type == "cpu" and bool(x_BD.numel() and weight_FD.numel())


def _above_in_float32(rows: Rows, cut_F: Tensor) -> SparseActivations:
    """Of the float32 product: what its own rounding leaves open is settled, and where few are active, all values are."""
    room = MAX_ACTIVE * rows.x_BD.shape[0] * rows.weight_FD.shape[0]
    largest = rows.norm_B.nan_to_num(0, 0, 0).max()
    loss_F = rows.lost * (largest * rows.norm_F.nan_to_num(0, 0, 0) + rows.bias_F.float().abs())
    low_F = cut_F - 2.0**-22 * cut_F.abs() - loss_F
    found = _compact(rows.x_BD, rows.weight_FD, rows.bias_F, lambda pre_BF: pre_BF > low_F)
    if found.feature.shape[0] > room:
        found = above(rows, found.row, found.feature, cut_F, found.value)
    return found if found.feature.shape[0] > room else above(rows, found.row, found.feature, cut_F)


def _compact(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, select: Callable[[Tensor], Tensor]) -> SparseActivations:
    n_rows, n_features = x_BD.shape[0], weight_FD.shape[0]
    weight_FD, bias_F = weight_FD.to(x_BD.dtype), bias_F.to(x_BD.dtype)
    places, values = [], []
    for rows in row_blocks(x_BD, n_features):
        pre_BF = torch.addmm(bias_F, x_BD[rows], weight_FD.T)
        place = select(pre_BF).flatten().nonzero()[:, 0]
        values.append(pre_BF.flatten()[place])
        places.append(place + rows.start * n_features)
    if not places:
        empty = torch.empty(0, dtype=torch.int64, device=x_BD.device)
        return SparseActivations.from_entries(empty, empty, x_BD.new_empty(0), n_rows, n_features)
    place = torch.cat(places)
    row = torch.div(place, n_features, rounding_mode="floor")
    return SparseActivations.from_entries(row, place - row * n_features, torch.cat(values), n_rows, n_features)


def row_blocks(x_BD: Tensor, n_features: int) -> Iterator[slice]:
    """Slices of rows whose pre-activations take BLOCK_BYTES."""
    budget = BLOCK_BYTES if x_BD.device.type == "cpu" else BLOCK_BYTES_ACCELERATOR
    step = max(1, budget // max(1, n_features * x_BD.element_size()))
    for start in range(0, x_BD.shape[0], step):
        yield slice(start, min(start + step, x_BD.shape[0]))
