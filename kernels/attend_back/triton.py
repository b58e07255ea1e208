"""`attend_back_` and `attend_back_recomputed_` with Triton kernels, for CUDA tensors (derivation and costs: README.md).

Projections of float32 rows are a kernel (`projections.py`), others matrix products of torch. The sum over queries is one
kernel, for a stored pattern and for a strip of keys of one made anew. Each element has one program: no atomics, two runs are
bitwise equal. Written from the description in README.md; no other implementation served as a model.

Letters: T rows in flight, P positions, D d_model, H heads, K key/value heads, d d_head, O = H * d, V = K * d,
Q queries and S keys of a strip.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_tracer.kernels.attend_back import BYTES_IN_FLIGHT_ON_GPU
from circuit_tracer.kernels.attend_back.projections import project_
from circuit_tracer.kernels.attend_back.scores import Scores
from circuit_tracer.kernels.launch import (
    BLOCK_SUMMED,
    FUSED,
    INTERPRETED,
    accumulator,
    dot,
    kernel,
    product,
    require_rows,
    settled,
    tuned,
    unspecialized,
)

STRIP_BYTES = 2**26  # of a pattern made anew
MIN_STRIP = 16 if INTERPRETED else 64
# keys and queries of a tile of a pattern made anew
BLOCK_S, BLOCK_Q = (16, 16) if INTERPRETED else (64, 64)


def attend_back_(g_TPD: Tensor, pattern_HPP: Tensor, output_DO: Tensor, value_VD: Tensor) -> None:
    """As `circuit_tracer.kernels.attend_back.attend_back_`."""
    n_pos, d_head = g_TPD.shape[1], output_DO.shape[-1] // pattern_HPP.shape[0]
    for rows, z_TPO, mixed_TPV in _projected(g_TPD, output_DO, value_VD):
        _mix_op(mixed_TPV, pattern_HPP, z_TPO, 0, n_pos, 0, n_pos, d_head)
        _add_(rows, mixed_TPV, value_VD)


def attend_back_recomputed_(g_TPD: Tensor, scores: Scores, output_DO: Tensor, value_VD: Tensor) -> None:
    """As `circuit_tracer.kernels.attend_back.attend_back_recomputed_`: the pattern is made a strip of keys at a time.

    Like one that is stored, it has the dtype of the rows.
    """
    n_pos, d_head = g_TPD.shape[1], output_DO.shape[-1] // scores.n_heads
    bytes_a_key = scores.n_heads * n_pos * g_TPD.element_size()
    width = max(MIN_STRIP, STRIP_BYTES // max(1, bytes_a_key) // MIN_STRIP * MIN_STRIP)
    for rows, z_TPO, mixed_TPV in _projected(g_TPD, output_DO, value_VD):
        for start in range(0, n_pos, width):
            stop = min(start + width, n_pos)
            first, last = scores.queries_of(start, stop, n_pos)
            strip_HQS = g_TPD.new_empty(scores.n_heads, last - first, stop - start)
            pattern_(strip_HQS, scores, start, first)
            _mix_op(mixed_TPV, strip_HQS, z_TPO, start, stop - start, first, last, d_head)
        _add_(rows, mixed_TPV, value_VD)


def pattern_(strip_HQS: Tensor, scores: Scores, first_key: int, first_query: int) -> None:
    """Fills the strip with the pattern of its queries, from ``first_query`` on, and keys, from ``first_key`` on."""
    _pattern_op(
        strip_HQS,
        scores.query_HPd,
        scores.key_KPd,
        scores.lse_HP,
        scores.first_P.to(strip_HQS.device),
        scores.key_scale_P,
        first_key,
        first_query,
        scores.scaling,
        scores.softcap,
    )


def _projected(g_TPD: Tensor, output_DO: Tensor, value_VD: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of rows, each with its projections onto heads and memory for what the heads hand back."""
    n_rows, n_pos, d_model = g_TPD.shape
    if not (n_rows and n_pos):
        return
    n_out, n_value = output_DO.shape[-1], value_VD.shape[-2]
    step = max(1, BYTES_IN_FLIGHT_ON_GPU // max(1, n_pos * (n_out + n_value) * g_TPD.element_size()))
    for rows in g_TPD.split(step):
        z_TPO = rows.new_empty(len(rows), n_pos, n_out)
        if rows.dtype is torch.float32:
            project_(z_TPO.view(-1, n_out), rows.view(-1, d_model), output_DO)
        else:
            torch.mm(rows.view(-1, d_model), output_DO, out=z_TPO.view(-1, n_out))
        yield rows, z_TPO, rows.new_empty(len(rows), n_pos, n_value)


def _add_(rows_TPD: Tensor, mixed_TPV: Tensor, value_VD: Tensor) -> None:
    """rows += what the heads hand back, projected."""
    rows_nD, mixed_nV = rows_TPD.view(-1, rows_TPD.shape[2]), mixed_TPV.flatten(0, 1)
    if rows_TPD.dtype is torch.float32:
        project_(rows_nD, mixed_nV, value_VD, add=True)
    else:
        rows_nD.addmm_(mixed_nV, value_VD)


@torch.library.custom_op("circuit_tracer_kernels::attend_back_mix", mutates_args=("mixed_TPV",))
def _mix_op(
    mixed_TPV: Tensor,
    pattern: Tensor,
    z_TPO: Tensor,
    first_key: int,
    n_keys: int,
    first_query: int,
    last_query: int,
    d_head: int,
) -> None:
    """mixed[t, k] = sum over the group's heads and queries of pattern[h, q, k] z[t, q, h], for some keys.

    The pattern is (H, queries, keys) and begins at those given, or anywhere before for a whole one.
    """
    n_rows, _, n_value = mixed_TPV.shape
    n_kv = n_value // d_head
    columns = n_rows * d_head
    if not (columns and n_keys):
        return
    kind = product(pattern.dtype, z_TPO.dtype)
    _mix[lambda meta: (triton.cdiv(columns, meta["BLOCK_C"]), triton.cdiv(n_keys, meta["BLOCK_K"]), n_kv)](
        mixed_TPV,
        pattern,
        z_TPO,
        columns,
        d_head,
        pattern.shape[0] // n_kv,
        first_key,
        n_keys,
        first_query,
        last_query,
        *pattern.stride(),
        mixed_TPV.stride(0),
        mixed_TPV.stride(1),
        z_TPO.stride(0),
        z_TPO.stride(1),
        PRODUCT=kind,
        TYPE=accumulator(z_TPO.dtype),
        OFFSET=tl.int64 if (MOST_COLUMNS // d_head + 2) * z_TPO.stride(0) >= 2**31 else tl.int32,
        BLOCK_Q=BLOCK_SUMMED[kind],
    )


MOST_COLUMNS = 128  # of a tile
CONFIGS = [
    triton.Config({"BLOCK_K": 64, "BLOCK_C": 64}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_K": 64, "BLOCK_C": MOST_COLUMNS}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_K": 128, "BLOCK_C": 64}, num_warps=8, num_stages=3),
]


@tuned(CONFIGS, triton.Config({"BLOCK_K": 16, "BLOCK_C": 32}), key=["d_head"], sizes=["n_columns"])
@unspecialized("first_key", "first_query", "last_query")
def _mix(
    mixed: tl.tensor,
    pattern: tl.tensor,
    z: tl.tensor,
    n_columns: tl.tensor,
    d_head: tl.tensor,
    groups: tl.tensor,
    first_key: tl.tensor,
    n_keys: tl.tensor,
    first_query: tl.tensor,
    last_query: tl.tensor,
    pattern_head: tl.tensor,
    pattern_query: tl.tensor,
    pattern_key: tl.tensor,
    mixed_row: tl.tensor,
    mixed_position: tl.tensor,
    z_row: tl.tensor,
    z_position: tl.tensor,
    PRODUCT: tl.constexpr,
    TYPE: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr,
) -> None:
    # columns (row, element of the head) run fastest: programs next to each other read the same part of the pattern
    first = tl.program_id(0) * BLOCK_C
    column = first + tl.arange(0, BLOCK_C)
    first_row = first // d_head
    row, element = (column // d_head - first_row).to(OFFSET), column % d_head
    first_of_tile, k = tl.program_id(1) * BLOCK_K, tl.arange(0, BLOCK_K)
    kv_head = tl.program_id(2).to(tl.int64)
    live_column, live_key = column < n_columns, first_of_tile + k < n_keys
    q = tl.arange(0, BLOCK_Q)
    pattern += first_of_tile.to(tl.int64) * pattern_key
    z += first_row.to(tl.int64) * z_row
    of_pattern = k[:, None] * pattern_key + q[None, :] * pattern_query
    of_z = (row * z_row + element)[None, :] + q[:, None] * z_position
    total = tl.full((BLOCK_K, BLOCK_C), 0, TYPE)
    rest = tl.full((BLOCK_K, BLOCK_C), 0, TYPE)
    # no query before its key: the pattern is zero there
    begin = tl.maximum(first_query, first_key + first_of_tile)
    for group in range(groups):
        head = kv_head * groups + group
        for at in tl.range(begin, last_query, BLOCK_Q):
            live = at + q < last_query
            place = pattern + head * pattern_head + tl.cast(at - first_query, tl.int64) * pattern_query
            left = tl.load(place + of_pattern, mask=live_key[:, None] & live[None, :], other=0)
            place = z + head * d_head + tl.cast(at, tl.int64) * z_position
            right = tl.load(place + of_z, mask=live[:, None] & live_column[None, :], other=0)
            total, rest = dot(left, right, total, rest, PRODUCT)
    total = settled(total, rest, PRODUCT)
    place = mixed + first_row.to(tl.int64) * mixed_row + tl.cast(first_key + first_of_tile, tl.int64) * mixed_position
    place += kv_head * d_head
    of_mixed = (row * mixed_row + element)[None, :] + k[:, None] * mixed_position
    tl.store(place + of_mixed, total, mask=live_key[:, None] & live_column[None, :])


@torch.library.custom_op("circuit_tracer_kernels::attend_back_pattern", mutates_args=("strip_HQS",))
def _pattern_op(
    strip_HQS: Tensor,
    query_HPd: Tensor,
    key_KPd: Tensor,
    lse_HP: Tensor,
    first_P: Tensor,
    key_scale_P: Tensor | None,
    first_key: int,
    first_query: int,
    scaling: float,
    softcap: float | None,
) -> None:
    """Fills the strip with the pattern of its queries, from ``first_query`` on, and keys, from ``first_key`` on."""
    require_rows(query_HPd=query_HPd, key_KPd=key_KPd, lse_HP=lse_HP)
    n_heads, n_queries, n_keys = strip_HQS.shape
    if not (n_queries and n_keys):
        return
    kind = product(query_HPd.dtype, key_KPd.dtype)
    _pattern[(triton.cdiv(n_queries, BLOCK_Q), triton.cdiv(n_keys, BLOCK_S), n_heads)](
        strip_HQS,
        query_HPd,
        key_KPd,
        lse_HP,
        first_P,
        key_scale_P,
        query_HPd.shape[2],
        n_heads // key_KPd.shape[0],
        first_key,
        n_keys,
        first_query,
        n_queries,
        strip_HQS.stride(0),
        strip_HQS.stride(1),
        *query_HPd.stride()[:2],
        *key_KPd.stride()[:2],
        lse_HP.stride(0),
        SCALING=scaling,
        SOFTCAP=softcap or 0.0,
        KEY_SCALE=key_scale_P is not None,
        PRODUCT=kind,
        TYPE=accumulator(query_HPd.dtype),
        BLOCK_Q=BLOCK_Q,
        BLOCK_S=BLOCK_S,
        BLOCK_D=BLOCK_SUMMED[kind],
        **FUSED,
    )


@unspecialized("first_key", "first_query", "n_queries")
def _pattern(
    strip: tl.tensor,
    query: tl.tensor,
    key: tl.tensor,
    lse: tl.tensor,
    first: tl.tensor,
    key_scale: tl.tensor,
    d_head: tl.tensor,
    groups: tl.tensor,
    first_key: tl.tensor,
    n_keys: tl.tensor,
    first_query: tl.tensor,
    n_queries: tl.tensor,
    strip_head: tl.tensor,
    strip_query: tl.tensor,
    query_head: tl.tensor,
    query_position: tl.tensor,
    key_head: tl.tensor,
    key_position: tl.tensor,
    lse_head: tl.tensor,
    SCALING: tl.constexpr,
    SOFTCAP: tl.constexpr,
    KEY_SCALE: tl.constexpr,
    PRODUCT: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    at_q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    at_k = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    head = tl.program_id(2).to(tl.int64)
    q, k = (first_query + at_q).to(tl.int64), (first_key + at_k).to(tl.int64)
    live_q, live_k = at_q < n_queries, at_k < n_keys
    query_row = query + head * query_head + q[:, None] * query_position
    key_row = key + (head // groups) * key_head + k[None, :] * key_position
    s = tl.full((BLOCK_Q, BLOCK_S), 0, TYPE)
    rest = tl.full((BLOCK_Q, BLOCK_S), 0, TYPE)
    for at in tl.range(0, d_head, BLOCK_D):
        d = at + tl.arange(0, BLOCK_D)
        inside = d < d_head
        left = tl.load(query_row + d[None, :], mask=live_q[:, None] & inside[None, :], other=0)
        right = tl.load(key_row + d[:, None], mask=live_k[None, :] & inside[:, None], other=0)
        s, rest = dot(left, right, s, rest, PRODUCT)
    s = settled(s, rest, PRODUCT) * SCALING
    if SOFTCAP > 0:
        s = SOFTCAP * tanh(s / SOFTCAP, TYPE)
    p = tl.exp(s - tl.load(lse + head * lse_head + q, mask=live_q, other=0).to(TYPE)[:, None])
    if KEY_SCALE:
        p = p * tl.load(key_scale + k, mask=live_k, other=0).to(TYPE)[None, :]
    seen = (k[None, :] <= q[:, None]) & (k[None, :] >= tl.load(first + q, mask=live_q, other=0)[:, None])
    place = strip + head * strip_head + at_q.to(tl.int64)[:, None] * strip_query + at_k[None, :]
    tl.store(place, tl.where(seen, p, 0.0), mask=live_q[:, None] & live_k[None, :])


@kernel
def tanh(x: tl.tensor, TYPE: tl.constexpr) -> tl.tensor:
    """By exponentials; in float32 by its series where these cancel, so that it is off by a few units in the last place."""
    e = tl.exp(-2 * tl.abs(x))
    result = tl.where(x < 0, e - 1, 1 - e) / (1 + e)
    if tl.float32 == TYPE:
        y = x * x
        series = x * (1 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835)))))
        result = tl.where(y < 0.0625, series, result)
    return result
