"""Pull rows of gradients back through frozen attention (derivation and costs: README.md).

`attend_back_` takes the pattern as it is; `attend_back_recomputed_` makes it anew, tile by tile, from queries, keys and the
log-sum-exp, so that nothing of size P^2 exists. `attend_back_several_` takes rows of several prompts, with a pattern each. CUDA
tensors take the Triton kernels (triton.py), all others torch.

Letters: T rows in flight, P positions, D d_model, H heads, O = H * d_head, V = H_kv * d_head, B prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.kernels.attend_back.scores import Scores
from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.product import in_steps, product

__all__ = ["Scores", "attend_back_", "attend_back_recomputed_", "attend_back_several_", "mix_forward"]

KEYS_A_TILE = 256
QUERIES_A_TILE = 1024
# of rows projected onto heads; beyond that, rows go through one chunk after the other
BYTES_IN_FLIGHT, BYTES_IN_FLIGHT_ON_GPU = 64 * 2**20, 2**30
BYTES_IN_CACHE = 2 * 2**20  # of rows of several prompts on a CPU: short ones are gone over several times
POSITIONS_IN_CACHE = 1024  # of rows of one prompt on a CPU, all together, for the same reason


def attend_back_(g_TPD: Tensor, pattern_HPP: Tensor, output_DO: Tensor, value_VD: Tensor) -> None:
    """g[t,k] += sum over heads h and queries q >= k of pattern[h,q,k] * (g[t,q] W_O^h) W_V^kv(h), in place.

    All of one floating dtype; products accumulate in it.

    Args:
        g_TPD: (T, P, D) contiguous, updated.
        pattern_HPP: (H, P, P), rows = queries, zero above the diagonal; factors that depend on the query or the key
            position alone (1/sigma of norms) may be multiplied into it.
        output_DO: (D, O).
        value_VD: (V, D), heads of a group share it (grouped-query attention).
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
        mixed = flat.new_zeros(in_steps(len(flat)), n_kv * d_head)[: len(flat)]
        by_row = torch.bmm(pattern, z).view(n_kv, n_pos, count, d_head)
        mixed.view(count, n_pos, n_kv, d_head).copy_(by_row.permute(2, 1, 0, 3))
        flat += product(mixed, value_VD)
    return None


def attend_back_recomputed_(g_TPD: Tensor, scores: Scores, output_DO: Tensor, value_VD: Tensor) -> None:
    """The same with the pattern of `scores`, of which only the first P positions are looked at.

    A tile of the pattern is made once for a chunk of rows, and products skip the queries that see none of its keys. Beyond
    g and `scores` it takes some `BYTES_IN_FLIGHT` (or one row's projections), whatever T and P.

    Args:
        g_TPD: (T, P, D) contiguous, updated.
        scores: What patterns are made of, tile by tile.
        output_DO: (D, O).
        value_VD: (V, D).
    """
    if on_gpu(g_TPD):
        from circuit_tracer.kernels.attend_back import triton

        return triton.attend_back_recomputed_(g_TPD, scores, output_DO, value_VD)
    n_rows, n_pos, d_model = g_TPD.shape
    d_head = output_DO.shape[1] // scores.n_heads
    n_kv = value_VD.shape[0] // d_head
    width = output_DO.shape[1] // n_kv
    per_row = n_pos * (width + value_VD.shape[0]) * g_TPD.element_size()
    for rows in g_TPD.split(rows_a_chunk(per_row)) if n_rows else ():
        flat = rows.view(-1, d_model)
        mixed = g_TPD.new_zeros(rows.shape[0], n_pos, n_kv * d_head)
        for head in range(n_kv):
            z = (flat @ output_DO[:, head * width : (head + 1) * width]).view(rows.shape[0], n_pos, width)
            _mix_(mixed[:, :, head * d_head : (head + 1) * d_head], z, scores, head)
        flat.addmm_(mixed.view(-1, n_kv * d_head), value_VD)
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
        output_DO: (D, O).
        value_VD: (V, D).
    """
    n_rows, n_pos, d_model = g_TPD.shape
    n_heads = pattern_BHPP.shape[1]
    d_head = output_DO.shape[1] // n_heads
    n_kv = value_VD.shape[0] // d_head
    groups = n_heads // n_kv
    numbers = n_pos * (output_DO.shape[1] + value_VD.shape[0] + n_heads * n_pos)
    in_flight = BYTES_IN_FLIGHT_ON_GPU if on_gpu(g_TPD) else BYTES_IN_CACHE
    step = max(1, in_flight // max(1, numbers * g_TPD.element_size()))
    for rows, prompt in zip(g_TPD.split(step), prompt_T.split(step), strict=True) if n_rows else ():
        count = rows.shape[0]
        flat = rows.view(count * n_pos, d_model)
        z = product(flat, output_DO).view(count, n_pos, n_kv, groups, d_head)
        z = z.permute(0, 2, 3, 1, 4).reshape(count * n_kv, groups * n_pos, d_head)
        pattern = pattern_BHPP.index_select(0, prompt).view(count * n_kv, groups * n_pos, n_pos)
        mixed = torch.bmm(pattern.transpose(1, 2), z).view(count, n_kv, n_pos, d_head)
        flat += product(mixed.transpose(1, 2).reshape(count * n_pos, n_kv * d_head), value_VD)


def mix_forward(values_PKd: Tensor, scores: Scores) -> Tensor:
    """Frozen attention forward: out[q, h] = sum over keys k of pattern[h,q,k] values[k, kv(h)], as (P, H * d).

    Args:
        values_PKd: (P, K, d), K heads of keys and values.
        scores: What patterns are made of, tile by tile.

    Returns:
        (P, H * d).
    """
    n_pos, n_kv, d_head = values_PKd.shape
    groups = scores.n_heads // n_kv
    out = values_PKd.new_zeros(n_pos, n_kv, groups, d_head)
    for start in range(0, n_pos, KEYS_A_TILE):
        queries = slice(start, min(n_pos, start + KEYS_A_TILE))
        keys = slice(*scores.keys_of(queries.start, queries.stop))
        for head in range(n_kv):
            tiles = scores.tile(head, queries, keys)
            out[queries, head] = torch.matmul(tiles, values_PKd[keys, head]).transpose(0, 1)
    return out.flatten(1)


def rows_a_chunk(bytes_a_row: int) -> int:
    """How many rows' projections fit into `BYTES_IN_FLIGHT`, at least one."""
    return max(1, BYTES_IN_FLIGHT // max(1, bytes_a_row))


def _mix_(mixed_TPd: Tensor, z_TPw: Tensor, scores: Scores, kv_head: int) -> None:
    """mixed[t,k] += sum over the group's heads and queries of pattern[h,q,k] z[t,q,h]."""
    n_rows, n_pos, d_head = mixed_TPd.shape
    for start in range(0, n_pos, KEYS_A_TILE):
        keys = slice(start, min(n_pos, start + KEYS_A_TILE))
        first, last = scores.queries_of(keys.start, keys.stop, n_pos)
        out = mixed_TPd[:, keys]
        for query in range(first, last, QUERIES_A_TILE):
            queries = slice(query, min(last, query + QUERIES_A_TILE))
            for group, tile in enumerate(scores.tile(kv_head, queries, keys)):
                z = z_TPw[:, queries, group * d_head : (group + 1) * d_head]
                out.baddbmm_(tile.T.expand(n_rows, -1, -1), z)
