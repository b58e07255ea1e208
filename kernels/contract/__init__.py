"""Contract rows of gradients with the write vectors of sources, grouped by position (derivation and costs: README.md).

CUDA tensors take the Triton kernel (triton.py), all others matrix products.

Letters: T rows in flight, P positions, D d_model, n sources that write here, N columns of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from circuit_tracer.kernels.contract.addressed import AddressedRows, contract_gathered_
from circuit_tracer.kernels.device import on_gpu

# So few rows on a CPU are contracted one by one: a matrix product of few rows by many is slower than these by its packing.
FEW_ROWS = 4
PRODUCTS = 1 << 17  # numbers of a piece on a CPU that are multiplied before they are summed: they stay in cache


def contract_(
    out_TN: Tensor, g_TPD: Tensor, source_nD: Tensor, source_ptr: Sequence[int], column: Sequence[int]
) -> None:
    """`out[t, column[p] + i] += <g[t, p], source[source_ptr[p] + i]>` for every position p and source i there, in place.

    All of one floating dtype; products accumulate in it, or in float32 if it is narrower and the device is CUDA.

    CUDA tensors: one Triton launch. Others: a matrix product for each position, or for each row too where there are few.

    Args:
        out_TN: (T, N).
        g_TPD: (T, P, D).
        source_nD: (n, D), sorted by position.
        source_ptr: P + 1 offsets into it (more are ignored: rows that never reach later positions need not look at them). As
            `Offsets` a GPU is given them once.
        column: First column of each position, in ascending order; as above.
    """
    if g_TPD.shape[0] == 0:
        return None
    if on_gpu(g_TPD):
        from circuit_tracer.kernels.contract import triton

        return triton.contract_(out_TN, g_TPD, source_nD, source_ptr, column)
    few = out_TN.shape[0] <= FEW_ROWS
    counts = [stop - start for start, stop in pairwise(source_ptr[: g_TPD.shape[1] + 1])]
    sources = source_nD[source_ptr[0] : source_ptr[len(counts)]].split_with_sizes(counts)
    for g_TD, out_Tn, source in zip(g_TPD.unbind(1), _columns(out_TN, column, counts), sources, strict=False):
        if not out_Tn.shape[1]:
            continue
        if not few:
            out_Tn.addmm_(g_TD, source.T)
            continue
        for out_n, g_D in zip(out_Tn.unbind(), g_TD.unbind(), strict=True):
            out_n.addmv_(source, g_D)
    return None


def _columns(out_TN: Tensor, column: Sequence[int], counts: Sequence[int]) -> Sequence[Tensor]:
    """The columns of each position, all views at once: with few sources at each, one by one they take as long as products."""
    sizes, end = [], 0
    for first, count in zip(column, counts, strict=False):
        first = first if count else end
        sizes += [first - end, count]
        end = first + count
    views: Sequence[Tensor] = out_TN.split_with_sizes([*sizes, out_TN.shape[1] - end], 1)[1::2]
    return views


def contract_each(g_TPD: Tensor, source_PD: Tensor) -> Tensor:
    """<g[t, p], source[p]>, (T, P): of one source at each position, of the same dtype.

    Args:
        g_TPD: (T, P, D) contiguous, updated.
        source_PD: (P, D).

    Returns:
        (T, P) products.
    """
    if g_TPD.device.type != "cpu":
        return torch.einsum("tpd,pd->tp", g_TPD, source_PD)
    # to torch this is a batch of matrix products with one column each, for which its libraries are not made
    rows = g_TPD.split(max(1, PRODUCTS // max(1, source_PD.numel())))
    return torch.cat([(some * source_PD).sum(-1) for some in rows])


def contract_rows_(out_TN: Tensor, g_TPD: Tensor, sources: AddressedRows) -> None:
    """`out[t, column[i]] += scale[i] * <g[t, p], tables[table[i]][row[i]]>` for every source i at every position p, in place.

    Positions of ``sources`` beyond P are ignored. Tables may be narrower than gradients (bfloat16 rows of a checkpoint);
    products accumulate in the dtype of ``g_TPD``, in float32 at least on CUDA.

    CUDA tensors: one Triton launch that reads every row where it is stored. Others: rows are gathered piece by
    piece (addressed.py), and each position is a matrix product.

    Args:
        out_TN: (T, N).
        g_TPD: (T, P, D).
        sources: What is read, where it is stored.
    """
    if g_TPD.shape[0] == 0 or not sources.tables:
        return None
    if on_gpu(g_TPD):
        from circuit_tracer.kernels.contract import triton

        return triton.contract_rows_(out_TN, g_TPD, sources)
    return contract_gathered_(out_TN, g_TPD, sources)
