"""Specification of `encode`: one dot product per (token, feature), and only what lies above its cut is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.kernels.sparse_rows import SparseRows


def encode(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, cut_F: Tensor) -> SparseRows:
    """The entries with pre > cut, where pre = <x[b], weight[f]> + bias[f] is also their value.

    The comparison is strict. A NaN is above no cut, so it makes no entry. Shapes as in `circuit_tracer.kernels.encode.encode`.
    """
    row_ptr, feature, value = [0], [], []
    for x_D in x_BD:
        for f in range(weight_FD.shape[0]):
            pre = x_D @ weight_FD[f] + bias_F[f]
            if pre > cut_F[f]:
                feature.append(f)
                value.append(pre)
        row_ptr.append(len(feature))
    return SparseRows(
        row_ptr=torch.tensor(row_ptr),
        feature=torch.tensor(feature, dtype=torch.int64),
        value=torch.stack(value) if value else x_BD.new_zeros(0),
        n_features=weight_FD.shape[0],
    )
