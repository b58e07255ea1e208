"""Sparse decoder products equal their specification, touch active features only, and leave everything else alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.kernels.decode import (
    Written,
    decode_,
    decode_sources_,
    gradients,
    value_gradients,
    weight_gradients,
)
from circuit_tracer.kernels.decode import columns as columns_module
from circuit_tracer.kernels.decode import naive as specification
from circuit_tracer.kernels.decode.cases import PATTERNS, draw
from circuit_tracer.kernels.decode.columns import gathered_dots
from circuit_tracer.kernels.sparse_activations import SparseActivations

Dtypes = tuple[torch.dtype, torch.dtype]
Problem = tuple[Tensor, SparseActivations, Tensor]  # out or gradient (B, C), entries, weights (F, C)

# Relative RMS error, by the dtype of out and gradients and of the weights; products accumulate in the former.
TOLERANCE = {
    (torch.float64, torch.float64): 1e-14,
    (torch.float32, torch.float32): 1e-6,
    (torch.float32, torch.bfloat16): 1e-6,
    (torch.float64, torch.bfloat16): 1e-14,
}
DTYPES = list(TOLERANCE)
each_dtype = pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(str(d)[6:] for d in pair))
SHAPES = [(1, 1, 1), (0, 7, 60), (5, 1, 7), (63, 37, 60), (5, 7, 96), (17, 130, 123), (3, 37, 577)]  # B, F, C
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_pattern = pytest.mark.parametrize("pattern", PATTERNS)


def exact(problem: Problem) -> Problem:
    """The same numbers in float64."""
    grad_BC, entries, weight_FC = problem
    return grad_BC.double(), entries.with_value(entries.value.double()), weight_FC.double()


def decoded(problem: Problem) -> Tensor:
    """`decode_` on a copy."""
    out_BC = problem[0].clone()
    decode_(out_BC, *problem[1:])
    return out_BC


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative RMS error; what is not finite must agree in place and kind."""
    assert found.shape == expected.shape
    finite = expected.isfinite()
    torch.testing.assert_close(found[~finite].double(), expected[~finite], equal_nan=True)
    if finite.any():
        error = (found.double() - expected)[finite].square().mean().sqrt()
        assert error <= tolerance * expected[finite].square().mean().sqrt()


def assert_specified(problem: Problem, dtypes: Dtypes) -> None:
    """All three products."""
    (grad_BC, entries, weight_FC), reference = problem, exact(problem)
    n_features, tolerance = len(weight_FC), TOLERANCE[dtypes]
    assert_close(decoded(problem), specification.decode(*reference), tolerance)
    d_value = value_gradients(grad_BC, entries, weight_FC)
    assert d_value.dtype == grad_BC.dtype
    assert_close(d_value, specification.value_gradients(*reference), tolerance)
    d_weight = weight_gradients(grad_BC, entries, 0, n_features)
    assert d_weight.dtype == grad_BC.dtype
    assert_close(d_weight, specification.weight_gradients(*reference[:2], 0, n_features), tolerance)
    for alone, together in zip((d_value, d_weight), gradients(grad_BC, entries, weight_FC), strict=True):
        assert torch.equal(alone.nan_to_num(), together.nan_to_num())


@pytest.mark.few
@each_dtype
@each_shape
@each_pattern
def test_equals_the_specification(shape: tuple[int, int, int], dtypes: Dtypes, pattern: str) -> None:
    assert_specified(draw(*shape, dtypes, pattern), dtypes)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n_rows=st.integers(0, 9),
    n_features=st.sampled_from([1, 2, 7, 37]),
    width=st.sampled_from([1, 2, 7, 60, 96]),
    dtypes=st.sampled_from(DTYPES),
    pattern=st.sampled_from(PATTERNS),
    seed=st.integers(0, 999),
)
def test_equals_the_specification_for_any_shape(
    n_rows: int, n_features: int, width: int, dtypes: Dtypes, pattern: str, seed: int
) -> None:
    assert_specified(draw(n_rows, n_features, width, dtypes, pattern, seed), dtypes)


@each_dtype
def test_rows_may_come_in_any_split(dtypes: Dtypes) -> None:
    """Blocks of rows of the weights' gradient are the rows of the whole; an empty block is empty."""
    grad_BC, entries, _ = draw(63, 37, 60, dtypes)
    whole = weight_gradients(grad_BC, entries, 0, 37)
    cuts = [0, 0, 1, 8, 9, 36, 37, 37]
    blocks = [weight_gradients(grad_BC, entries, start, stop) for start, stop in pairwise(cuts)]
    assert [len(block) for block in blocks] == [0, 1, 7, 1, 27, 1, 0]
    assert torch.equal(torch.cat(blocks), whole)


@each_dtype
@each_pattern
def test_the_three_products_are_adjoint(dtypes: Dtypes, pattern: str) -> None:
    """<G, decode(a, W)> = <a, value gradients> = <W, weight gradients>."""
    grad_BC, entries, weight_FC = draw(17, 37, 60, dtypes, pattern)
    zeros = torch.zeros_like(grad_BC)
    through_out = (grad_BC * decoded((zeros, entries, weight_FC))).double().sum()
    through_value = (entries.value * value_gradients(grad_BC, entries, weight_FC)).double().sum()
    through_weight = (weight_FC * weight_gradients(grad_BC, entries, 0, 37)).double().sum()
    scale = grad_BC.norm() * weight_FC.double().norm() * max(1, len(entries.feature)) ** 0.5
    for other in (through_value, through_weight):
        assert (through_out - other).abs() <= TOLERANCE[dtypes] * scale


# Memory: slices, other columns, what is not active


def within(tensor: Tensor, start: int, total: int) -> tuple[Tensor, Tensor]:
    """A wide array of NaN and the slice of its columns that holds the tensor."""
    wide = torch.full((len(tensor), total), torch.nan, dtype=tensor.dtype)
    part = wide[:, start : start + tensor.shape[1]]
    part.copy_(tensor)
    return wide, part


@each_dtype
@pytest.mark.parametrize("start", [0, 1, 60, 120], ids=lambda start: f"column{start}")
def test_takes_column_slices(dtypes: Dtypes, start: int) -> None:
    grad_BC, entries, weight_FC = draw(9, 37, 60, dtypes)
    assert_specified((within(grad_BC, start, 180)[1], entries, within(weight_FC, start, 180)[1]), dtypes)


@each_dtype
@pytest.mark.parametrize("start", [0, 1, 60, 120], ids=lambda start: f"column{start}")
def test_decode_adds_in_place_and_touches_no_other_column(dtypes: Dtypes, start: int) -> None:
    problem = draw(9, 37, 60, dtypes)
    out_BC, entries, weight_FC = problem
    wide, part = within(out_BC, start, 180)
    kept = wide.clone()
    decode_(part, entries, weight_FC)
    assert_close(part, specification.decode(*exact(problem)), TOLERANCE[dtypes])
    others = torch.ones(180, dtype=torch.bool)
    others[start : start + 60] = False
    assert torch.equal(wide[:, others].isnan(), kept[:, others].isnan())


@each_dtype
@each_pattern
def test_weight_gradients_fill_the_memory_they_are_given(dtypes: Dtypes, pattern: str) -> None:
    grad_BC, entries, _ = draw(9, 37, 60, dtypes, pattern)
    _, out_nC = within(torch.full((17, 60), torch.nan, dtype=grad_BC.dtype), 60, 180)
    assert weight_gradients(grad_BC, entries, 3, 20, out_nC) is out_nC
    assert torch.equal(out_nC, weight_gradients(grad_BC, entries, 3, 20))


@each_dtype
def test_inputs_are_left_alone(dtypes: Dtypes) -> None:
    grad_BC, entries, weight_FC = draw(9, 37, 60, dtypes)
    inputs = [grad_BC, weight_FC, entries.row_ptr, entries.feature, entries.value]
    before = [tensor.clone() for tensor in inputs]
    decoded((grad_BC, entries, weight_FC))
    value_gradients(grad_BC, entries, weight_FC)
    weight_gradients(grad_BC, entries, 3, 20)
    for tensor, kept in zip(inputs, before, strict=True):
        assert torch.equal(tensor, kept)


@each_dtype
@each_pattern
@pytest.mark.usefixtures("poisoned_memory")
def test_nothing_of_the_result_is_left_unwritten(dtypes: Dtypes, pattern: str) -> None:
    assert torch.empty(3).isnan().all()
    assert_specified(draw(9, 37, 60, dtypes, pattern), dtypes)


@each_dtype
def test_rows_of_silent_features_are_not_looked_at(dtypes: Dtypes) -> None:
    grad_BC, entries, weight_FC = draw(5, 37, 60, dtypes)
    silent = torch.bincount(entries.feature, minlength=37) == 0
    assert silent.sum() > 3
    weight_FC[silent] = torch.nan
    assert_specified((grad_BC, entries, weight_FC), dtypes)
    assert decoded((grad_BC, entries, weight_FC)).isfinite().all()


@each_dtype
def test_values_may_have_a_dtype_of_their_own(dtypes: Dtypes) -> None:
    grad_BC, entries, weight_FC = draw(9, 37, 60, dtypes)
    for dtype in (torch.float32, torch.float64):
        given_entries = entries.with_value(entries.value.float().to(dtype))
        assert_specified((grad_BC, given_entries, weight_FC), dtypes)


# Non-finite inputs


@each_dtype
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["out", "value", "weight"])
def test_what_is_not_finite_stays_with_its_token_and_feature(dtypes: Dtypes, place: str, value: float) -> None:
    problem = draw(9, 37, 60, dtypes, "some")
    grad_BC, entries, weight_FC = problem
    if place == "out":
        grad_BC[4, 5] = value
    elif place == "value":
        entries.value[7] = value
    else:
        weight_FC[int(entries.feature[7]), 5] = value
    assert_specified(problem, dtypes)


# The same result however it is computed


def in_chunks_of(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on so many columns are a chunk, converted or not."""
    for name in ("MOST_COLUMNS", "LEAST_COLUMNS", "LEAST_CONVERTED", "CONVERTED_BYTES"):
        monkeypatch.setattr(columns_module, name, 1 if name == "CONVERTED_BYTES" else columns)


@each_dtype
@each_pattern
def test_two_runs_are_bitwise_equal(dtypes: Dtypes, pattern: str) -> None:
    problem = draw(63, 37, 123, dtypes, pattern)
    grad_BC, entries, weight_FC = problem
    assert torch.equal(decoded(problem), decoded(problem))
    assert torch.equal(*(value_gradients(grad_BC, entries, weight_FC) for _ in range(2)))
    assert torch.equal(*(weight_gradients(grad_BC, entries, 0, 37) for _ in range(2)))


@each_dtype
def test_a_token_does_not_depend_on_its_neighbours(dtypes: Dtypes) -> None:
    """Each token alone gives, bitwise, what it gives in the batch."""
    out_BC, entries, weight_FC = problem = draw(9, 37, 60, dtypes)
    whole = decoded(problem)
    for b in range(9):
        alone = entries.keep(entries.row == b)
        first, last = int(entries.row_ptr[b]), int(entries.row_ptr[b + 1])
        one = SparseActivations(torch.tensor([0, last - first]), alone.feature, alone.value, 37)
        assert torch.equal(decoded((out_BC[b : b + 1], one, weight_FC))[0], whole[b])


@each_dtype
@pytest.mark.parametrize("columns", [1, 7, 64])
def test_chunks_of_columns_change_nothing(dtypes: Dtypes, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(columns, monkeypatch)
    assert_specified(draw(9, 37, 123, dtypes), dtypes)


@each_dtype
def test_the_number_of_workers_changes_no_bit(dtypes: Dtypes, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(7, monkeypatch)
    monkeypatch.setattr("circuit_tracer.kernels.decode.columns.LEAST_WORK", 0)
    out_BC, entries, weight_FC = problem = draw(63, 37, 123, dtypes)

    def found(n_workers: int) -> list[Tensor]:
        monkeypatch.setattr("circuit_tracer.kernels.decode.columns.workers_on", lambda device: n_workers)
        return [decoded(problem), *gradients(out_BC, entries, weight_FC)]

    one = found(1)
    for n_workers in (2, 3):
        assert all(torch.equal(*pair) for pair in zip(one, found(n_workers), strict=True))


@each_dtype
@pytest.mark.parametrize("columns", [7, 60, 64])
def test_sources_together_give_what_they_give_one_after_the_other(
    dtypes: Dtypes, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each to columns of its own, whether chunks begin where theirs do or not; bitwise."""
    out_BC, first, first_FC = draw(9, 37, 180, dtypes, seed=1)
    _, second, second_FC = draw(9, 31, 120, dtypes, seed=2)
    silent = first.keep(torch.zeros_like(first.feature, dtype=torch.bool))
    expected, together_BC = out_BC.clone(), out_BC.clone()
    decode_(expected, first, first_FC)
    decode_(expected[:, 60:], second, second_FC)
    in_chunks_of(columns, monkeypatch)
    sources = [Written(first, first_FC, 0), Written(second, second_FC, 60), Written(silent, first_FC, 0)]
    decode_sources_(together_BC, sources)
    assert torch.equal(together_BC, expected)


@each_dtype
@each_pattern
@pytest.mark.parametrize("bytes_at_a_time", [1, 1000, 10**9])
def test_gathering_gives_the_same_dot_products(
    dtypes: Dtypes, pattern: str, bytes_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of other devices."""
    monkeypatch.setattr("circuit_tracer.kernels.decode.columns.GATHERED_BYTES", bytes_at_a_time)
    problem = draw(9, 37, 123, dtypes, pattern)
    expected = specification.value_gradients(*exact(problem))
    if len(expected):
        assert_close(gathered_dots(*problem), expected, TOLERANCE[dtypes])


@each_dtype
@each_pattern
def test_bags_give_the_same_sums(dtypes: Dtypes, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of other devices."""
    problem = draw(9, 37, 123, dtypes, pattern)
    grad_BC, entries, _ = problem
    expected = decoded(problem), weight_gradients(grad_BC, entries, 3, 20)
    monkeypatch.setattr(columns_module, "_has_sparse_products", lambda device: False)
    found = decoded(problem), weight_gradients(grad_BC, entries, 3, 20)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other.double(), TOLERANCE[dtypes])


@pytest.mark.parametrize("n_columns", [1, 255, 576, 2304, 17280])
@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_are_even_and_cover_all_columns(n_columns: int, rows: torch.dtype) -> None:
    found = columns_module.chunks(torch.empty(1, n_columns), [torch.empty(4096, 1, dtype=rows)])
    assert [place for one in found for place in range(one.start, one.stop)] == list(range(n_columns))
    assert found[0].stop <= (1152 if rows == torch.float32 else 128)
    assert len(found) >= min(4, n_columns // 256)
    assert found[0].stop - (found[-1].stop - found[-1].start) <= len(found)
