"""Specification of `attend_back_`: the adjoint of frozen attention, written as the sums it stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from circuit_tracer.kernels.attend_back.scores import Scores


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


def attend_back_several(
    g_TPD: Tensor, pattern_BHPP: Tensor, prompt_T: Tensor, output_DO: Tensor, value_VD: Tensor
) -> Tensor:
    """A new tensor, as `circuit_tracer.kernels.attend_back.attend_back_several_` would make of g: row after row by itself."""
    rows = [
        attend_back(g_PD[None], pattern_BHPP[int(prompt)], output_DO, value_VD)
        for g_PD, prompt in zip(g_TPD, prompt_T, strict=True)
    ]
    return torch.cat(rows) if rows else g_TPD.clone()


def pattern_of(scores: Scores, n_pos: int) -> Tensor:
    """The pattern (H, P, P) that `scores` stands for, among the first `n_pos` positions."""
    n_heads, n_kv = scores.query_HPd.shape[0], scores.key_KPd.shape[0]
    pattern = torch.zeros(n_heads, n_pos, n_pos, dtype=scores.query_HPd.dtype)
    for head in range(n_heads):
        for query in range(n_pos):
            for key in range(int(scores.first_P[query]), query + 1):
                s = scores.scaling * float(scores.query_HPd[head, query] @ scores.key_KPd[head * n_kv // n_heads, key])
                if scores.softcap:
                    s = scores.softcap * math.tanh(s / scores.softcap)
                weight = math.exp(s - float(scores.lse_HP[head, query]))
                pattern[head, query, key] = weight if scores.key_scale_P is None else weight * scores.key_scale_P[key]
    return pattern


def attend_back_recomputed(g_TPD: Tensor, scores: Scores, output_DO: Tensor, value_VD: Tensor) -> Tensor:
    """A new tensor, as `circuit_tracer.kernels.attend_back.attend_back_recomputed_` would make of g."""
    return attend_back(g_TPD, pattern_of(scores, g_TPD.shape[1]), output_DO, value_VD)
