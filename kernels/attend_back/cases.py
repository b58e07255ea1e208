"""Random problems of attend_back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.kernels.attend_back.scores import Scores
from circuit_tracer.kernels.cases import Calls, Cases, Dtypes

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


def draw(
    n_rows: int, n_pos: int, d_model: int, n_kv: int, groups: int, d_head: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients, causal pattern (rows sum to 1 or less, as with sinks), output and value projections."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    pattern = torch.softmax(normal(n_kv * groups, n_pos, n_pos + 1), dim=-1)[..., :-1].tril()
    return (
        normal(n_rows, n_pos, d_model),
        pattern,
        normal(d_model, n_kv * groups * d_head),
        normal(n_kv * d_head, d_model),
    )


def draw_scores(
    n_pos: int,
    n_kv: int,
    groups: int,
    d_head: int,
    dtype: torch.dtype,
    window: int,
    softcap: bool,
    scale: bool,
    seed: int,
) -> Scores:
    """Scores of a softmax over the keys of a window and a sink."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key = normal(n_kv * groups, n_pos, d_head).to(dtype), normal(n_kv, n_pos, d_head).to(dtype)
    first = (torch.arange(n_pos) - window + 1).clamp(min=0)
    found = Scores(
        query,
        key,
        normal(n_kv * groups, n_pos).abs() + 1,
        first,
        scaling=2 * d_head**-0.5,
        softcap=3.0 if softcap else None,
        key_scale_P=normal(n_pos).exp() if scale else None,
    )
    return cast(found, dtype)


def cast(scores: Scores, dtype: torch.dtype) -> Scores:
    """The same numbers in another dtype."""
    parts: dict[str, Any] = {
        field.name: part.to(dtype) if isinstance(part, Tensor) and part.is_floating_point() else part
        for field in fields(scores)
        for part in [getattr(scores, field.name)]
    }
    return Scores(**parts)


def calls(dtypes: Dtypes, n_rows: int, n_pos: int, d_model: int, n_kv: int, groups: int, d_head: int) -> Calls:
    """T, P, D, kv heads, query heads a kv head, d_head."""
    g_TPD, pattern_HPP, output_DO, value_VD = draw(n_rows, n_pos, d_model, n_kv, groups, d_head, dtypes[0])
    scores = draw_scores(n_pos, n_kv, groups, d_head, dtypes[0], n_pos, softcap=True, scale=True, seed=0)
    return {
        "attend_back_": (g_TPD.clone(), pattern_HPP, output_DO, value_VD),
        "attend_back_recomputed_": (g_TPD, scores, output_DO, value_VD),
    }


CASES = Cases(
    "attend_back",
    calls,
    shapes=[(2, 7, 63, 1, 2, 3), (3, 19, 5, 2, 1, 16)],
    torch={(F64,): 1e-13, (F32,): 1e-5},
    triton={(F64,): 1e-13, (F32,): 1e-5},
    compiled=[((F32,), (16, 32, 48, 2, 2, 64)), ((BF16,), (16, 32, 48, 2, 2, 256)), ((F64,), (16, 32, 48, 2, 2, 16))],
)
