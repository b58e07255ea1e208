"""`contract_` equals its specification, whatever the shape, and touches nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.kernels import contract as module
from circuit_tracer.kernels.contract import contract_, contract_each
from circuit_tracer.kernels.contract.cases import draw
from circuit_tracer.kernels.contract.naive import contract

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)

# T, D, sources of each position
SHAPES = [
    (1, 1, [1]),
    (0, 4, [2, 1]),
    (3, 63, [0]),
    (2, 1, [0, 3, 0, 2]),
    (5, 63, [4, 0, 1]),
    (1, 16, [0, 0, 0]),
    (7, 8, [33]),
    (17, 3, [1, 2, 3, 4, 5]),
]


def expected_of(out: Tensor, g: Tensor, source: Tensor, ptr: list[int], column: list[int]) -> Tensor:
    return contract(out, g, source, torch.tensor(ptr), torch.tensor(column))


def assert_close(found: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[found.dtype] * scale)


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_specification(shape: tuple[int, int, list[int]], dtype: torch.dtype) -> None:
    out, *rest = draw(*shape, dtype)
    expected = expected_of(out, *rest)
    contract_(out, *rest)
    assert_close(out, expected)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n_rows=st.integers(0, 5),
    d_model=st.sampled_from([1, 2, 7, 16]),
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    gap=st.integers(0, 2),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 999),
)
def test_equals_the_specification_for_any_shape(
    n_rows: int, d_model: int, counts: list[int], gap: int, dtype: torch.dtype, seed: int
) -> None:
    out, *rest = draw(n_rows, d_model, counts, dtype, seed, gap)
    expected = expected_of(out, *rest)
    contract_(out, *rest)
    assert_close(out, expected)


@each_dtype
def test_columns_of_others_are_not_touched(dtype: torch.dtype) -> None:
    out, g, source, ptr, column = draw(3, 8, [2, 0, 3], dtype)
    mine = torch.zeros(out.shape[1], dtype=torch.bool)
    for position, first in enumerate(column):
        mine[first : first + ptr[position + 1] - ptr[position]] = True
    expected = expected_of(out, g, source, ptr, column)
    out[:, ~mine] = float("nan")
    contract_(out, g, source, ptr, column)
    assert torch.isnan(out[:, ~mine]).all()
    assert_close(out[:, mine], expected[:, mine])


@each_dtype
def test_rows_that_end_early_do_not_look_at_later_sources(dtype: torch.dtype) -> None:
    out, g, source, ptr, column = draw(3, 8, [2, 1, 3, 2], dtype)
    expected = expected_of(out, g[:, :2], source[: ptr[2]], ptr[:3], column[:2])
    source[ptr[2] :] = float("nan")
    contract_(out, g[:, :2].contiguous(), source, ptr, column)
    assert_close(out, expected)


@each_dtype
def test_positions_and_rows_do_not_see_each_other(dtype: torch.dtype) -> None:
    out, g, source, ptr, column = draw(4, 8, [2, 3, 1], dtype, gap=0)
    expected = expected_of(out, g, source, ptr, column)
    source[ptr[1] : ptr[2]] = float("nan")
    g[2] = float("nan")
    contract_(out, g, source, ptr, column)
    spoiled = torch.zeros_like(out, dtype=torch.bool)
    spoiled[2] = spoiled[:, ptr[1] : ptr[2]] = True
    assert torch.isnan(out[spoiled]).all()
    assert_close(out[~spoiled], expected[~spoiled])


@each_dtype
def test_adds_to_what_is_there_and_takes_slices(dtype: torch.dtype) -> None:
    out, g, source, ptr, column = draw(5, 8, [2, 3], dtype)
    expected = out.clone()
    expected[1:4] = expected_of(out[1:4], g[1:4], source, ptr, column)
    contract_(out[1:4], g[1:4], source, ptr, column)
    assert_close(out, expected)


@each_dtype
@pytest.mark.parametrize("products", [1, 1000])
def test_one_source_at_each_position(products: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRODUCTS", products)  # a row at a time, and all at once
    out, g, source, ptr, column = draw(5, 16, [1] * 7, dtype)
    expected = expected_of(torch.zeros_like(out), g, source, ptr, column)[:, column]
    assert_close(contract_each(g[:, :7], source), expected)
    assert contract_each(g[:0], source).shape == (0, 7)
