"""`encode` equals its specification: the same entries, in the same order, with the same values."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.kernels.encode import encode
from circuit_tracer.kernels.encode import naive as specification
from circuit_tracer.kernels.encode.cases import draw
from circuit_tracer.kernels.encode.kept import of_one_call
from circuit_tracer.kernels.encode.scan import scan as coarse_scan
from circuit_tracer.kernels.sparse_activations import SparseActivations

Problem = tuple[Tensor, Tensor, Tensor, Tensor]  # x_BD, weight_FD, bias_F, cut_F

# Relative RMS error of values, by the dtype of x and of the weights; products accumulate in the dtype of x.
TOLERANCE = {
    (torch.float64, torch.float64): 1e-14,
    (torch.float32, torch.float32): 1e-6,
    (torch.float32, torch.bfloat16): 1e-6,
    (torch.float64, torch.bfloat16): 1e-14,
}
DTYPES = list(TOLERANCE)
each_dtype = pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(str(d)[6:] for d in pair))
SHAPES = [
    (1, 1, 1),
    (0, 60, 7),
    (5, 1, 7),
    (63, 60, 37),
    (5, 96, 7),
    (63, 123, 1),
    (2, 577, 37),
    (17, 7, 130),
]  # B, D, F
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
PATTERNS = ("some", "none", "all", "hot", "empty_rows")


def exact(problem: Problem) -> SparseActivations:
    """The specification in float64."""
    return specification.encode(*(tensor.double() for tensor in problem))


def assert_well_formed(entries: SparseActivations, problem: Problem) -> None:
    x_BD, weight_FD, _, _ = problem
    assert entries.n_rows == len(x_BD)
    assert entries.n_features == len(weight_FD)
    assert entries.row_ptr.dtype == entries.feature.dtype == torch.int64
    assert entries.value.dtype == x_BD.dtype
    assert entries.row_ptr[0] == 0
    assert entries.row_ptr[-1] == len(entries.feature) == len(entries.value)
    place = entries.row * entries.n_features + entries.feature
    assert (place.diff() > 0).all()  # by token, then feature, none twice


def assert_same(found: SparseActivations, expected: SparseActivations) -> None:
    """Bitwise."""
    assert torch.equal(found.row_ptr, expected.row_ptr)
    assert torch.equal(found.feature, expected.feature)
    assert torch.equal(found.value.double(), expected.value.double())


def assert_specified(found: SparseActivations, problem: Problem) -> None:
    assert_well_formed(found, problem)
    assert_same(found, exact(problem))


@pytest.mark.few
@each_dtype
@each_shape
@pytest.mark.parametrize("pattern", PATTERNS)
def test_finds_exactly_the_entries_of_the_specification(
    shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype], pattern: str
) -> None:
    problem = draw(*shape, dtypes, pattern)
    assert_specified(encode(*problem), problem)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n_rows=st.integers(0, 9),
    width=st.sampled_from([1, 2, 7, 60, 96]),
    n_features=st.sampled_from([1, 2, 7, 37]),
    dtypes=st.sampled_from(DTYPES),
    pattern=st.sampled_from(PATTERNS),
    seed=st.integers(0, 999),
)
def test_finds_exactly_the_entries_of_the_specification_for_any_shape(
    n_rows: int, width: int, n_features: int, dtypes: tuple[torch.dtype, torch.dtype], pattern: str, seed: int
) -> None:
    problem = draw(n_rows, width, n_features, dtypes, pattern, seed)
    assert_specified(encode(*problem), problem)


@pytest.mark.few
@each_dtype
@each_shape
@pytest.mark.parametrize("pattern", ["some", "all"])
def test_values_are_those_of_the_specification_to_rounding(
    shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype], pattern: str
) -> None:
    """Off the grid, only entries within rounding of their cut may be judged differently."""
    problem = draw(*shape, dtypes, pattern, grid=False)
    found, expected = encode(*problem), exact(problem)
    assert_well_formed(found, problem)
    dense = [torch.zeros(shape[0], shape[2], dtype=torch.float64) for _ in range(2)]
    kept = [torch.zeros(shape[0], shape[2], dtype=torch.bool) for _ in range(2)]
    for entries, values, mask in zip((found, expected), dense, kept, strict=True):
        values[entries.row, entries.feature] = entries.value.double()
        mask[entries.row, entries.feature] = True
    tolerance, both = TOLERANCE[dtypes], kept[0] & kept[1]
    if both.any():
        error = (dense[0] - dense[1])[both].square().mean().sqrt()
        assert error <= tolerance * dense[1][both].square().mean().sqrt()
    row, feature = (kept[0] ^ kept[1]).nonzero(as_tuple=True)
    pre = (problem[0].double() @ problem[1].double().T + problem[2].double())[row, feature]
    slack = tolerance * shape[1] ** 0.5 * 10
    assert ((pre - problem[3].double()[feature]).abs() <= slack).all()


@each_dtype
def test_an_entry_at_its_cut_is_silent(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x_BD = torch.tensor([[2.0], [1.0], [0.5]], dtype=dtypes[0])
    weight_FD = torch.tensor([[0.5], [1.0]], dtype=dtypes[1])
    zero, cut = torch.zeros(2, dtype=dtypes[0]), torch.tensor([0.5, 0.5], dtype=dtypes[0])
    entries = encode(x_BD, weight_FD, zero, cut)
    assert entries.row_ptr.tolist() == [0, 2, 3, 3]
    assert entries.feature.tolist() == [0, 1, 1]
    assert entries.value.tolist() == [1.0, 2.0, 1.0]


@each_dtype
@pytest.mark.parametrize("start", [0, 1, 60], ids=lambda start: f"column{start}")
def test_takes_column_slices_and_leaves_its_inputs_alone(dtypes: tuple[torch.dtype, torch.dtype], start: int) -> None:
    x_BD, weight_FD, bias_F, cut_F = draw(9, 60, 37, dtypes)
    wide = [torch.full((len(t), 180), torch.nan, dtype=t.dtype) for t in (x_BD, weight_FD)]
    for whole, part in zip(wide, (x_BD, weight_FD), strict=True):
        whole[:, start : start + 60] = part
    sliced = (wide[0][:, start : start + 60], wide[1][:, start : start + 60], bias_F, cut_F)
    before = [tensor.clone() for tensor in sliced]
    assert_specified(encode(*sliced), (x_BD, weight_FD, bias_F, cut_F))
    for tensor, kept in zip(sliced, before, strict=True):
        assert torch.equal(tensor, kept)
    transposed = x_BD.T.contiguous().T
    assert_specified(encode(transposed, weight_FD.T.contiguous().T, bias_F, cut_F), (x_BD, weight_FD, bias_F, cut_F))


@each_dtype
@pytest.mark.usefixtures("poisoned_memory")
def test_nothing_of_the_result_is_left_unwritten(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    for pattern in PATTERNS:
        problem = draw(9, 60, 37, dtypes, pattern)
        assert_specified(encode(*problem), problem)


# Non-finite inputs


def spoil(problem: Problem, place: str, value: float) -> Problem:
    spoiled = [tensor.clone() for tensor in problem]
    {"x": spoiled[0], "weight": spoiled[1]}[place][3, 5] = value
    return spoiled[0], spoiled[1], spoiled[2], spoiled[3]


@each_dtype
@pytest.mark.parametrize("place", ["x", "weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_token_or_feature(
    dtypes: tuple[torch.dtype, torch.dtype], place: str, value: float
) -> None:
    """NaN is above no cut; infinity is above every finite one."""
    problem = spoil(draw(9, 60, 37, dtypes), place, value)
    assert_specified(encode(*problem), problem)


@each_dtype
def test_nan_cuts_and_infinite_cuts(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x_BD, weight_FD, bias_F, cut_F = draw(9, 60, 37, dtypes)
    cut_F[0], cut_F[1], cut_F[2], bias_F[3], bias_F[4] = torch.nan, torch.inf, -torch.inf, torch.inf, -torch.inf
    problem = x_BD, weight_FD, bias_F, cut_F
    found = encode(*problem)
    assert_specified(found, problem)
    assert torch.bincount(found.feature, minlength=37)[:5].tolist() == [0, 0, 9, 9, 0]


# The same result however it is computed


def assert_repeats(make: Callable[[], SparseActivations]) -> None:
    first, second = make(), make()
    assert torch.equal(first.row_ptr, second.row_ptr)
    assert torch.equal(first.feature, second.feature)
    assert torch.equal(first.value, second.value)


@each_dtype
def test_two_runs_are_bitwise_equal(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    problem = draw(63, 123, 37, dtypes, grid=False)
    assert_repeats(lambda: encode(*problem))


@each_dtype
@pytest.mark.parametrize("bytes_at_a_time", [1, 1000, 10**9])
def test_blocks_change_nothing(
    dtypes: tuple[torch.dtype, torch.dtype], bytes_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuit_tracer.kernels.encode.product.BLOCK_BYTES", bytes_at_a_time)
    problem = draw(63, 60, 37, dtypes)
    assert_specified(encode(*problem), problem)


# The scan: coarse products find candidates, exact ones decide. Large enough to use it, and as if this CPU had the products.


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch) -> Callable[[Problem], SparseActivations]:
    monkeypatch.setattr("circuit_tracer.kernels.encode.kept.has_bfloat16_products", lambda: True)
    monkeypatch.setattr("circuit_tracer.kernels.encode.kept.LEAST_WEIGHTS", 0)

    def run(problem: Problem) -> SparseActivations:
        x_BD, weight_FD, bias_F, cut_F = problem
        weights = of_one_call(weight_FD, len(x_BD))
        cuts, lifted_F = weights.cuts(cut_F, bias_F)
        assert weights.coarse is not None
        assert lifted_F is not None
        assert coarse_scan(weights.rows(x_BD, bias_F), weights.coarse, cuts, lifted_F) is not None
        return encode(*problem)

    return run


def sparse_problem(weight_dtype: torch.dtype, seed: int = 0, width: int = 64) -> Problem:
    """About one pre-activation in a hundred is above its cut; tokens and features of very different norms, some zero."""
    x_BD, weight_FD, bias_F, _ = draw(300, width, 270, (torch.float32, weight_dtype), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x_BD *= 2.0 ** torch.randint(-4, 4, (300, 1), generator=generator)
    weight_FD *= 2.0 ** torch.randint(-4, 3, (270, 1), generator=generator).to(weight_dtype)
    x_BD[7] = 0
    weight_FD[11] = 0
    bias_F[13:17] = -1000
    pre_BF = x_BD @ weight_FD.float().T + bias_F
    cut_F = pre_BF.sort(dim=0).values[-4]  # of a token, so that it ties with its cut
    return x_BD, weight_FD, bias_F, cut_F


def dense(problem: Problem) -> SparseActivations:
    """What the specification finds, at the speed of a matrix product."""
    x_BD, weight_FD, bias_F, cut_F = (tensor.double() for tensor in problem)
    pre_BF = x_BD @ weight_FD.T + bias_F
    row, feature = (pre_BF > cut_F).nonzero(as_tuple=True)
    return SparseActivations.from_entries(row, feature, pre_BF[row, feature], len(x_BD), len(weight_FD))


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_scan_finds_exactly_the_entries(
    scan: Callable[[Problem], SparseActivations], weight_dtype: torch.dtype, seed: int
) -> None:
    problem = sparse_problem(weight_dtype, seed, width=[64, 65, 96, 123, 200][seed])
    found = scan(problem)
    assert_well_formed(found, problem)
    assert_same(found, dense(problem))


@pytest.mark.parametrize("seed", range(5))
def test_scan_misses_nothing_that_is_just_above_its_cut(
    scan: Callable[[Problem], SparseActivations], seed: int
) -> None:
    """Off the grid, where coarse products are wrong by up to their margin, each cut is just below one pre-activation."""
    x_BD, weight_FD, bias_F, _ = sparse_problem(torch.float32, seed)
    generator = torch.Generator().manual_seed(seed)
    x_BD *= 1 + 2**-8 * torch.rand(x_BD.shape, generator=generator)
    weight_FD *= 1 + 2**-8 * torch.rand(weight_FD.shape, generator=generator)
    pre_BF = x_BD.double() @ weight_FD.double().T + bias_F.double()
    last_F = pre_BF.sort(dim=0).values[-3]
    problem = x_BD, weight_FD, bias_F, (last_F - 1e-5 * (1 + last_F.abs())).float()
    found, expected = scan(problem), dense(problem)
    assert torch.equal(found.row_ptr, expected.row_ptr)
    assert torch.equal(found.feature, expected.feature)
    error = (found.value.double() - expected.value).square().mean().sqrt()
    assert error <= TOLERANCE[torch.float32, torch.float32] * expected.value.square().mean().sqrt()


@pytest.mark.few
@pytest.mark.parametrize("n_features", [1, 7, 40, 270])
@pytest.mark.parametrize("n_rows", [257, 270, 272, 287, 300])
def test_scan_in_blocks_of_any_size(
    scan: Callable[[Problem], SparseActivations], n_rows: int, n_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last tokens may be fewer than those before, so that more features go to one product of them."""
    for name, value in {"TOKEN_BYTES": 0, "TOKENS": 16, "BLOCK": 1000, "MAX_ACTIVE": 1}.items():
        monkeypatch.setattr(sys.modules["circuit_tracer.kernels.encode.scan"], name, value)
    x_BD, weight_FD, bias_F, cut_F = sparse_problem(torch.float32)
    problem = x_BD[-n_rows:], weight_FD[:n_features], bias_F[:n_features], cut_F[:n_features]
    assert_same(scan(problem), dense(problem))


@pytest.mark.parametrize("place", ["x", "weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.usefixtures("scan")
def test_scan_keeps_what_is_not_finite_in_its_token_or_feature(place: str, value: float) -> None:
    problem = spoil(sparse_problem(torch.float32), place, value)
    found = encode(*problem)
    assert_well_formed(found, problem)
    assert_same(found, dense(problem))


@pytest.mark.usefixtures("scan")
def test_scan_with_infinite_and_nan_cuts() -> None:
    x_BD, weight_FD, bias_F, cut_F = sparse_problem(torch.float32)
    cut_F[0], cut_F[1], cut_F[2], bias_F[3], bias_F[4] = torch.nan, torch.inf, -torch.inf, torch.inf, -torch.inf
    problem = x_BD, weight_FD, bias_F, cut_F
    assert_same(encode(*problem), dense(problem))


@pytest.mark.usefixtures("scan")
def test_a_scan_that_would_not_pay_changes_nothing() -> None:
    x_BD, weight_FD, bias_F, cut_F = sparse_problem(torch.float32)
    problem = x_BD, weight_FD, bias_F, torch.zeros_like(cut_F)
    assert_same(encode(*problem), dense(problem))


def test_scan_takes_column_slices_and_repeats(scan: Callable[[Problem], SparseActivations]) -> None:
    x_BD, weight_FD, bias_F, cut_F = sparse_problem(torch.float32)
    wide = torch.full((300, 192), torch.nan)
    wide[:, 64:128] = x_BD
    assert_same(scan((wide[:, 64:128], weight_FD, bias_F, cut_F)), dense((x_BD, weight_FD, bias_F, cut_F)))
    assert_repeats(lambda: scan((x_BD, weight_FD, bias_F, cut_F)))


# What `SparseActivations` says of the entries


@each_shape
def test_columns_are_the_entries_by_feature_then_token(shape: tuple[int, int, int]) -> None:
    entries = encode(*draw(*shape, (torch.float32, torch.float32)))
    columns = entries.columns
    expected = sorted(
        (f, b, e) for e, (b, f) in enumerate(zip(entries.row.tolist(), entries.feature.tolist(), strict=True))
    )
    assert columns.entry.tolist() == [e for _, _, e in expected]
    assert columns.row.tolist() == [b for _, b, _ in expected]
    assert columns.feature_ptr.tolist() == [sum(f < g for f, _, _ in expected) for g in range(shape[2] + 1)]
    assert all(entries.row_ptr[b] <= e < entries.row_ptr[b + 1] for _, b, e in expected)
