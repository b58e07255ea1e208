"""Pull rows of gradients back through frozen attention (derivation and costs: README.md).

Letters: T rows in flight, P positions, D d_model, H heads, O = H * d_head, V = H_kv * d_head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend_back_(g_TPD: Tensor, pattern_HPP: Tensor, output_DO: Tensor, value_VD: Tensor) -> None:
    """g[t,k] += sum over heads h and queries q >= k of pattern[h,q,k] * (g[t,q] W_O^h) W_V^kv(h), in place.

    g_TPD: (T, P, D) contiguous, updated. pattern_HPP: (H, P, P), rows = queries, zero above the diagonal; factors that depend
    on the query or the key position alone (1/sigma of norms) may be multiplied into it. output_DO: (D, O). value_VD: (V, D),
    heads of a group share it (grouped-query attention). All of one floating dtype; products accumulate in it.
    """
    n_rows, n_pos, d_model = g_TPD.shape
    if n_rows == 0:
        return
    n_heads = pattern_HPP.shape[0]
    d_head = output_DO.shape[1] // n_heads
    n_kv = value_VD.shape[0] // d_head
    groups = n_heads // n_kv
    flat = g_TPD.view(n_rows * n_pos, d_model)
    z = (flat @ output_DO).view(n_rows, n_pos, n_kv, groups, d_head)
    z = z.permute(2, 3, 1, 0, 4).reshape(n_kv, groups * n_pos, n_rows * d_head)
    mixed = torch.bmm(pattern_HPP.reshape(n_kv, groups * n_pos, n_pos).transpose(1, 2), z)
    mixed = mixed.view(n_kv, n_pos, n_rows, d_head).permute(2, 1, 0, 3).reshape(n_rows * n_pos, n_kv * d_head)
    flat.addmm_(mixed, value_VD)
