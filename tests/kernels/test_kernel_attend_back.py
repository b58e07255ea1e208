"""`attend_back_` equals its specification, whatever the shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.kernels.attend_back import attend_back_, attend_back_several_
from circuit_tracer.kernels.attend_back.cases import draw
from circuit_tracer.kernels.attend_back.naive import attend_back, attend_back_several

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)

# T, P, D, kv heads, query heads a kv head, d_head
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (0, 3, 4, 1, 1, 2),
    (3, 1, 63, 2, 1, 5),
    (2, 7, 63, 1, 4, 3),
    (5, 4, 1, 2, 3, 1),
    (4, 9, 16, 3, 1, 8),
    (1, 33, 8, 2, 2, 7),
    (17, 5, 12, 1, 3, 4),
]


def assert_close(found: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[found.dtype] * scale)


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_specification(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g, pattern, output, value = draw(*shape, dtype)
    expected = attend_back(g, pattern, output, value)
    attend_back_(g, pattern, output, value)
    assert_close(g, expected)


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_several_prompts_have_their_own_pattern(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g, pattern, output, value = draw(*shape, dtype)
    patterns, prompt = torch.stack([pattern, pattern / 2, -pattern]), torch.arange(len(g)) % 3
    expected = attend_back_several(g, patterns, prompt, output, value)
    attend_back_several_(g, patterns, prompt, output, value)
    assert_close(g, expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n_rows=st.integers(0, 4),
    n_pos=st.integers(1, 6),
    d_model=st.sampled_from([1, 2, 7, 16]),
    n_kv=st.integers(1, 3),
    groups=st.integers(1, 3),
    d_head=st.integers(1, 5),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 999),
)
def test_equals_the_specification_for_any_shape(
    n_rows: int, n_pos: int, d_model: int, n_kv: int, groups: int, d_head: int, dtype: torch.dtype, seed: int
) -> None:
    g, pattern, output, value = draw(n_rows, n_pos, d_model, n_kv, groups, d_head, dtype, seed)
    expected = attend_back(g, pattern, output, value)
    attend_back_(g, pattern, output, value)
    assert_close(g, expected)


@each_dtype
def test_is_the_adjoint_of_attention(dtype: torch.dtype) -> None:
    n_kv, groups, d_head = 2, 3, 4
    g, pattern, output, value = draw(3, 6, 10, n_kv, groups, d_head, dtype)
    resid = torch.randn(6, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    heads = (resid @ value.T).view(6, n_kv, d_head).repeat_interleave(groups, dim=1)
    attended = resid + torch.einsum("hqk,khd->qhd", pattern, heads).flatten(1) @ output.T
    expected = torch.einsum("tpd,pd->t", g, attended)
    attend_back_(g, pattern, output, value)
    assert_close(torch.einsum("tpd,pd->t", g, resid), expected)


@each_dtype
def test_takes_strided_weights_and_patterns_and_leaves_them_alone(dtype: torch.dtype) -> None:
    g, pattern, output, value = draw(3, 5, 8, 2, 2, 3, dtype)
    expected = attend_back(g, pattern, output, value)
    wide = torch.full((4, 9, 9), float("nan"), dtype=dtype)
    wide[:, :5, :5] = pattern
    weights = wide[:, :5, :5], output.T.contiguous().T, value.T.contiguous().T
    before = [weight.clone() for weight in weights]
    attend_back_(g, *weights)
    assert_close(g, expected)
    for weight, kept in zip(weights, before, strict=True):
        assert torch.equal(weight, kept)


@each_dtype
def test_rows_do_not_see_each_other(dtype: torch.dtype) -> None:
    g, pattern, output, value = draw(4, 5, 8, 2, 2, 3, dtype)
    expected = attend_back(g, pattern, output, value)
    g[1] = float("nan")
    attend_back_(g, pattern, output, value)
    assert torch.isnan(g[1]).all()
    assert_close(g[[0, 2, 3]], expected[[0, 2, 3]])


@each_dtype
def test_a_slice_of_rows_is_updated_in_place(dtype: torch.dtype) -> None:
    g, pattern, output, value = draw(5, 4, 8, 1, 2, 3, dtype)
    expected = g.clone()
    expected[:2] = attend_back(g[:2], pattern, output, value)
    attend_back_(g[:2], pattern, output, value)
    assert_close(g, expected)


@pytest.mark.parametrize("shape", [(70, 20, 64, 1, 3, 32), (40, 2, 64, 2, 1, 32)], ids=str)
def test_many_rows_in_float32_are_those_of_float64(shape: tuple[int, ...]) -> None:
    g, pattern, output, value = draw(*shape, torch.float32)
    expected, found = g.double(), g.clone()
    attend_back_(expected, pattern.double(), output.double(), value.double())
    attend_back_(found, pattern, output, value)
    assert_close(found, expected.float())
