"""`attend_back_recomputed_` equals its specification and the pattern it stands for, however it is cut into tiles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.kernels.attend_back import Scores, attend_back_, attend_back_recomputed_, mix_forward, recomputed
from circuit_tracer.kernels.attend_back.naive import attend_back_recomputed, pattern_of

TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5}


@st.composite
def problems(draw: st.DrawFn, most: int = 6) -> tuple[Tensor, Scores, Tensor, Tensor]:
    """Gradients (T, P, D), scores, output and value projections."""
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    n_kv, groups, d_head = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    n_rows, n_pos, d_model = draw(st.integers(0, 4)), draw(st.integers(1, most)), draw(st.sampled_from([1, 2, 7, 16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    place = torch.arange(n_pos)
    kind, size = draw(st.sampled_from(["causal", "window", "chunk"])), draw(st.integers(1, 4))
    first = {"causal": place * 0, "window": (place - size + 1).clamp_min(0), "chunk": place // size * size}[kind]
    scores = Scores(
        normal(n_kv * groups, n_pos, d_head),
        normal(n_kv, n_pos, d_head),
        torch.zeros(n_kv * groups, n_pos, dtype=dtype),
        first,
        draw(st.sampled_from([1.0, 0.3])),
        draw(st.sampled_from([None, 2.0])),
        draw(st.sampled_from([None, normal(n_pos).abs()])),
    )
    # what its rows sum to without a log-sum-exp, and a sink that takes its share
    lse = (pattern_of(scores, n_pos).abs().sum(-1) + normal(1).abs()).log()
    scores = replace(scores, lse_HP=lse)
    return (
        normal(n_rows, n_pos, d_model),
        scores,
        normal(d_model, n_kv * groups * d_head),
        normal(n_kv * d_head, d_model),
    )


def assert_close(found: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[found.dtype] * scale)


@pytest.fixture(params=[(2, 1, 1), (3, 2, 4096), (256, 1024, 2**26)], ids=str)
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, queries, size = request.param
    monkeypatch.setattr(recomputed, "KEYS_A_TILE", keys)
    monkeypatch.setattr(recomputed, "QUERIES_A_TILE", queries)
    monkeypatch.setattr(recomputed, "BYTES_IN_FLIGHT", size)


few = settings(max_examples=40, deadline=None, derandomize=True)
each_tiling = pytest.mark.usefixtures("_tiles")


@each_tiling
def test_equals_the_specification() -> None:
    @few
    @given(problems())
    def check(problem: tuple[Tensor, Scores, Tensor, Tensor]) -> None:
        g, scores, output, value = problem
        expected = attend_back_recomputed(g, scores, output, value)
        attend_back_recomputed_(g, scores, output, value)
        assert_close(g, expected)

    check()


@each_tiling
def test_equals_the_product_with_the_stored_pattern() -> None:
    @few
    @given(problems(most=40), st.integers(1, 40))
    def check(problem: tuple[Tensor, Scores, Tensor, Tensor], n_pos: int) -> None:
        g, scores, output, value = problem
        g = g[:, :n_pos].contiguous()  # rows that end before the prompt does
        expected = g.clone()
        attend_back_(expected, scores.pattern()[:, : g.shape[1], : g.shape[1]], output, value)
        attend_back_recomputed_(g, scores, output, value)
        assert_close(g, expected)

    check()


@each_tiling
def test_forward_and_back_are_adjoint() -> None:
    @few
    @given(problems(most=20))
    def check(problem: tuple[Tensor, Scores, Tensor, Tensor]) -> None:
        g, scores, output, value = problem
        resid = torch.randn(g.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(g.dtype)
        values = (resid @ value.T).unflatten(-1, (scores.key_KPd.shape[0], -1))
        attended = resid + mix_forward(values, scores) @ output.T
        expected = torch.einsum("tpd,pd->t", g, attended)
        attend_back_recomputed_(g, scores, output, value)
        assert_close(torch.einsum("tpd,pd->t", g, resid), expected)

    check()


@few
@given(problems(most=12))
def test_factors_of_rows_and_columns_scale_the_pattern(problem: tuple[Tensor, Scores, Tensor, Tensor]) -> None:
    scores = problem[1]
    query, key = (torch.linspace(low, 2.0, scores.n_pos).to(scores.lse_HP) for low in (0.5, 1.5))
    assert_close(scores.scaled(query, key).pattern(), scores.pattern() * query[:, None] * key)
    assert_close(scores.pattern(), pattern_of(scores, scores.n_pos))
