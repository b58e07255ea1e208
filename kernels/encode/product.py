"""Entries of the whole product, block by block of rows: where no coarse product says which may be active.

Letters: B tokens, D width, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from circuit_tracer.kernels.encode.exact import Cuts, Rows, divided, places

BLOCK_BYTES = 16 * 2**20  # of pre-activations in hand on a CPU
BLOCK_BYTES_ACCELERATOR = 512 * 2**20

Entries = tuple[Tensor, Tensor, Tensor]  # token, feature, value, each (n,)


def above(rows: Rows, cuts: Cuts) -> Entries:
    """The entries above their cuts, of a float32 product on a CPU; what its own rounding leaves open is settled."""
    undecided_F = cuts.undecided(rows.losing_most)
    low_F, high_F = cuts.cut_F - undecided_F, cuts.cut_F + undecided_F

    def select(pre_BF: Tensor, block: slice) -> Tensor:
        active_BF = pre_BF > low_F
        near = places((pre_BF <= high_F).logical_and_(active_BF))
        if near.shape[0]:
            feature, row = divided(near, pre_BF.shape[1])
            value = pre_BF.view(-1).index_select(0, near)
            kept = rows.block(block).settled(row, feature, cuts, undecided_F, value)
            pre_BF.view(-1)[near] = value
            active_BF.view(-1)[near] = False
            active_BF.view(-1)[near.index_select(0, kept)] = True
        return active_BF

    return found(rows.x_BD, rows.weight_FD, rows.bias_F, select)


def where(mask: Tensor, entries: Entries) -> Entries:
    """Those of some entries, which mostly are all of them."""
    if mask.all():
        return entries
    place = places(mask)
    row, feature, value = (column.index_select(0, place) for column in entries)
    return row, feature, value


def found(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, select: Callable[[Tensor, slice], Tensor]) -> Entries:
    """The entries of the product that are selected, block by block of rows: by a mask of the pre-activations of some rows."""
    n_features = weight_FD.shape[0]
    weight_FD, bias_F = weight_FD.to(x_BD.dtype), bias_F.to(x_BD.dtype)
    at, values = [], []
    for rows in row_blocks(x_BD, n_features):
        pre_BF = torch.addmm(bias_F, x_BD[rows], weight_FD.T)
        place = places(select(pre_BF, rows))
        values.append(pre_BF.flatten().index_select(0, place))
        at.append(place + rows.start * n_features if rows.start else place)
    if not at:
        empty = torch.empty(0, dtype=torch.int64, device=x_BD.device)
        return empty, empty, x_BD.new_empty(0)
    place = at[0] if len(at) == 1 else torch.cat(at)
    feature, row = divided(place, n_features)
    return row, feature, values[0] if len(values) == 1 else torch.cat(values)


def row_blocks(x_BD: Tensor, n_features: int) -> Iterator[slice]:
    """Slices of rows whose pre-activations take BLOCK_BYTES."""
    budget = BLOCK_BYTES if x_BD.device.type == "cpu" else BLOCK_BYTES_ACCELERATOR
    step = max(1, budget // max(1, n_features * x_BD.element_size()))
    for start in range(0, x_BD.shape[0], step):
        yield slice(start, min(start + step, x_BD.shape[0]))
