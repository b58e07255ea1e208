"""Specification of `attend_back_`: the adjoint of frozen attention, written as the sums it stands for."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_back(g_TPD: Tensor, pattern_HPP: Tensor, output_DO: Tensor, value_VD: Tensor) -> Tensor:
    """g + adjoint of attention, a new tensor. Shapes as in `circuit_tracer.kernels.attend_back.attend_back_`."""
    n_heads, n_pos, _ = pattern_HPP.shape
    d_head = output_DO.shape[1] // n_heads
    n_kv = value_VD.shape[0] // d_head
    result = g_TPD.clone()
    for row in range(g_TPD.shape[0]):
        for key in range(n_pos):
            for head in range(n_heads):
                kv = head * n_kv // n_heads
                z_d = torch.zeros(d_head, dtype=g_TPD.dtype)
                for query in range(key, n_pos):
                    z_d += pattern_HPP[head, query, key] * (
                        g_TPD[row, query] @ output_DO[:, head * d_head : (head + 1) * d_head]
                    )
                result[row, key] += z_d @ value_VD[kv * d_head : (kv + 1) * d_head]
    return result
