"""Pull rows of gradients back through frozen attention whose pattern is made anew, tile by tile, from queries, keys and the
log-sum-exp (scores.py), so that nothing of size P^2 exists (derivation and costs: README.md).

Letters: T rows in flight, P positions, D d_model, H heads, O = H * d_head, V = H_kv * d_head.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from circuit_tracer.kernels.attend_back.scores import Scores
from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.workers import helped

KEYS_A_TILE = 256
QUERIES_A_TILE = 512
POSITIONS_IN_CACHE = 1024  # of a row, projected at a time: what they are made of and what they become stays in cache
# of rows projected onto heads; beyond that, rows go through one chunk after the other
BYTES_IN_FLIGHT, BYTES_IN_FLIGHT_ON_GPU = 128 * 2**20, 2**30


def attend_back_recomputed_(g_TPD: Tensor, scores: Scores, output_DO: Tensor, value_VD: Tensor) -> None:
    """As `attend_back_` with the pattern of `scores`, of which only the first P positions are looked at.

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
    n_rows, n_pos, _ = g_TPD.shape
    d_head = output_DO.shape[1] // scores.n_heads
    n_kv = value_VD.shape[0] // d_head
    most = rows_a_chunk(n_pos * (output_DO.shape[1] + value_VD.shape[0]) * g_TPD.element_size())
    chunks = g_TPD.tensor_split(-(-n_rows // most)) if n_rows else ()
    count = len(chunks[0]) if chunks else 0
    # rows side by side at each position: each sum over queries is one product, of all rows
    z_HPTd, mixed_KPTd = (g_TPD.new_empty(n, n_pos, count, d_head) for n in (scores.n_heads, n_kv))
    for rows in chunks:
        _chunk_(rows, z_HPTd[:, :, : len(rows)], mixed_KPTd[:, :, : len(rows)], scores, output_DO, value_VD)
    return None


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


def _chunk_(
    g_TPD: Tensor, z_HPTd: Tensor, mixed_KPTd: Tensor, scores: Scores, output_DO: Tensor, value_VD: Tensor
) -> None:
    """Some rows, with room for their projections. Inside a worker's block, idle workers help with each of the three steps."""
    n_pos, d_head = g_TPD.shape[1], z_HPTd.shape[3]
    pieces = [slice(start, start + POSITIONS_IN_CACHE) for start in range(0, n_pos, POSITIONS_IN_CACHE)]

    def onto_heads(row: int) -> None:
        for piece in pieces:
            z_HPTd[:, piece, row] = (g_TPD[row, piece] @ output_DO).unflatten(1, (-1, d_head)).transpose(0, 1)

    def back(row: int) -> None:
        for piece in pieces:
            g_TPD[row, piece].addmm_(mixed_KPTd[:, piece, row].transpose(0, 1).flatten(1), value_VD)

    helped(onto_heads, range(len(g_TPD)))
    _mix(mixed_KPTd.flatten(2), z_HPTd.flatten(2), scores)
    helped(back, range(len(g_TPD)))


def _mix(mixed_KPn: Tensor, z_HPn: Tensor, scores: Scores) -> None:
    """mixed[kv, k] = sum over the group's heads and queries of pattern[h,q,k] z[h,q], of n columns."""
    n_kv, n_pos, _ = mixed_KPn.shape
    groups = len(z_HPn) // n_kv

    def mix(place: tuple[int, int]) -> None:
        start, kv_head = place
        keys = slice(start, min(n_pos, start + KEYS_A_TILE))
        first, last = scores.queries_of(keys.start, keys.stop, n_pos)
        out, begun = mixed_KPn[kv_head, keys], 0.0
        for query in range(first, last, QUERIES_A_TILE):
            queries = slice(query, min(last, query + QUERIES_A_TILE))
            for head, tile in enumerate(scores.tile(kv_head, queries, keys), kv_head * groups):
                out.addmm_(tile.T, z_HPn[head, queries], beta=begun)
                begun = 1.0
        if not begun:
            out.zero_()

    helped(mix, itertools.product(range(0, n_pos, KEYS_A_TILE), range(n_kv)))  # those that most queries see first
