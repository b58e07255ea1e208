"""Pull rows of gradients back through frozen attention (derivation and costs: README.md).

`attend_back_` takes the pattern as it is; `attend_back_recomputed_` (recomputed.py) makes it anew, tile by tile.
`attend_back_several_` takes rows of several prompts, with a pattern each. CUDA tensors take the Triton kernels (triton.py), all
others torch.

Letters: T rows in flight, P positions, D d_model, H heads, O = H * d_head, V = H_kv * d_head, B prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.kernels.attend_back.recomputed import (
    BYTES_IN_FLIGHT,
    BYTES_IN_FLIGHT_ON_GPU,
    attend_back_recomputed_,
    mix_forward,
    rows_a_chunk,
)
from circuit_tracer.kernels.attend_back.scores import Scores
from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.product import add_product_, in_steps, product

__all__ = [
    "BYTES_IN_FLIGHT",
    "BYTES_IN_FLIGHT_ON_GPU",
    "Scores",
    "attend_back_",
    "attend_back_recomputed_",
    "attend_back_several_",
    "mix_forward",
    "rows_a_chunk",
]

BYTES_IN_CACHE = 2 * 2**20  # of rows of several prompts on a CPU: short ones are gone over several times
POSITIONS_IN_CACHE = 1024  # of rows of one prompt on a CPU, all together, for the same reason


def attend_back_(g_TPD: Tensor, pattern_HPP: Tensor, output_DO: Tensor, value_VD: Tensor) -> None:
    """g[t,k] += sum over heads h and queries q >= k of pattern[h,q,k] * (g[t,q] W_O^h) W_V^kv(h), in place.

    All of one floating dtype; products accumulate in it.

    Args:
        g_TPD: (T, P, D) contiguous, updated.
        pattern_HPP: (H, P, P), rows = queries, zero above the diagonal; factors that depend on the query or the key
            position alone (1/sigma of norms) may be multiplied into it.
        output_DO: (D, O), or its `factor` (kernels/product.py).
        value_VD: (V, D), or its `factor`; heads of a group share it (grouped-query attention).
    """
    if on_gpu(g_TPD):
        from circuit_tracer.kernels.attend_back import triton

        return triton.attend_back_(g_TPD, pattern_HPP, output_DO, value_VD)
    n_rows, n_pos, d_model = g_TPD.shape
    n_heads = pattern_HPP.shape[0]
    d_head = output_DO.shape[1] // n_heads
    n_kv = value_VD.shape[0] // d_head
    groups = n_heads // n_kv
    pattern = pattern_HPP.reshape(n_kv, groups * n_pos, n_pos).transpose(1, 2)
    for rows in g_TPD.tensor_split(-(-n_rows * n_pos // POSITIONS_IN_CACHE)) if n_rows else ():
        count = rows.shape[0]
        flat = rows.view(count * n_pos, d_model)
        z = product(flat, output_DO).view(count, n_pos, n_kv, groups, d_head)
        z = z.permute(2, 3, 1, 0, 4).reshape(n_kv, groups * n_pos, count * d_head)
        mixed = flat.new_empty(in_steps(len(flat)), n_kv * d_head)[: len(flat)]
        by_row = torch.bmm(pattern, z).view(n_kv, n_pos, count, d_head)
        mixed.view(count, n_pos, n_kv, d_head).copy_(by_row.permute(2, 1, 0, 3))
        add_product_(flat, mixed, value_VD)
    return None


def attend_back_several_(
    g_TPD: Tensor, pattern_BHPP: Tensor, prompt_T: Tensor, output_DO: Tensor, value_VD: Tensor
) -> None:
    """As `attend_back_`, where row t has the pattern of its prompt, pattern_BHPP[prompt_T[t]].

    Short prompts have few rows each: projections are made for the rows of all of them at once. Between these every row is
    multiplied by its own pattern, which is gathered for it: on any device, in torch. Costs T * H * P^2 numbers beside g.

    Args:
        g_TPD: (T, P, D) contiguous, updated.
        pattern_BHPP: (B, H, P, P), rows = queries.
        prompt_T: (T,) int64, the prompt of each row.
        output_DO: (D, O), or its `factor`.
        value_VD: (V, D), or its `factor`.
    """
    n_rows, n_pos, d_model = g_TPD.shape
    n_heads = pattern_BHPP.shape[1]
    n_out, n_value = output_DO.shape[-1], value_VD.shape[-2]
    d_head = n_out // n_heads
    n_kv = n_value // d_head
    groups = n_heads // n_kv
    numbers = n_pos * (n_out + n_value + n_heads * n_pos)
    in_flight = BYTES_IN_FLIGHT_ON_GPU if on_gpu(g_TPD) else BYTES_IN_CACHE
    step = max(1, in_flight // max(1, numbers * g_TPD.element_size()))
    for rows, prompt in zip(g_TPD.split(step), prompt_T.split(step), strict=True) if n_rows else ():
        count = rows.shape[0]
        flat = rows.view(count * n_pos, d_model)
        z = product(flat, output_DO).view(count, n_pos, n_kv, groups, d_head)
        z = z.permute(0, 2, 3, 1, 4).reshape(count * n_kv, groups * n_pos, d_head)
        pattern = pattern_BHPP.index_select(0, prompt).view(count * n_kv, groups * n_pos, n_pos)
        mixed = torch.bmm(pattern.transpose(1, 2), z).view(count, n_kv, n_pos, d_head)
        add_product_(flat, mixed.transpose(1, 2).reshape(count * n_pos, n_kv * d_head), value_VD)
