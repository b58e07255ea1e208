"""`contract_` and `contract_rows_` as Triton kernels equal their specification: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.kernels import contract as public
from circuit_tracer.kernels.contract.addressed import AddressedRows
from circuit_tracer.kernels.contract.cases import addressed, draw
from circuit_tracer.kernels.contract.naive import contract, contract_rows

pytest.importorskip("triton", reason="triton is not installed here")

from circuit_tracer.kernels.contract import triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Relative RMS error, by the dtype of gradients and of sources: sums are in float32 (float64), into results of that dtype.
TOLERANCE = {
    (torch.float64, torch.float64): 1e-14,
    (torch.float32, torch.float32): 1e-6,
    (torch.float32, torch.bfloat16): 1e-6,
    (torch.bfloat16, torch.bfloat16): 1e-6,
    (torch.float64, torch.bfloat16): 1e-14,
}
DTYPES = list(TOLERANCE)
each_dtype = pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(str(d)[6:] for d in pair))

# T, D, sources of each position
SHAPES = [
    (1, 1, [1]),
    (0, 4, [2, 1]),
    (3, 63, [0]),
    (2, 1, [0, 3, 0, 2]),
    (17, 576, [4, 0, 19]),
    (2, 2304, [2]),
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "T{}-D{}-{}".format(*shape))

Problem = tuple[Tensor, Tensor, AddressedRows]  # result to add to (T, N), gradients (T, P, D), sources


def there(problem: Problem) -> Problem:
    """On the device where kernels run."""
    out_TN, g_TPD, sources = problem
    parts = (part.to(DEVICE) for part in (sources.table, sources.row, sources.scale, sources.column))
    moved = AddressedRows([table.to(DEVICE) for table in sources.tables], *parts, sources.ptr)
    return out_TN.clone().to(DEVICE), g_TPD.to(DEVICE), moved


def exact(problem: Problem) -> Tensor:
    """The specification in float64."""
    out_TN, g_TPD, sources = problem
    tables = [table.double() for table in sources.tables]
    wide = AddressedRows(tables, sources.table, sources.row, sources.scale.double(), sources.column, sources.ptr)
    return contract_rows(out_TN.double(), g_TPD.double(), wide)


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    if expected.numel():
        error = (found.cpu().double() - expected).square().mean().sqrt()
        assert error <= tolerance * expected.square().mean().sqrt()


@pytest.mark.few
@each_dtype
@each_shape
def test_reads_rows_where_they_are_stored(
    shape: tuple[int, int, list[int]], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    problem = addressed(*shape, dtypes, seed=0)
    out_TN, g_TPD, sources = there(problem)
    kernels.contract_rows_(out_TN, g_TPD, sources)
    assert_close(out_TN, exact(problem), TOLERANCE[dtypes])


@settings(max_examples=15, deadline=None)
@given(
    n_rows=st.integers(0, 18),
    width=st.sampled_from([1, 2, 7, 63]),
    counts=st.lists(st.integers(0, 18), min_size=1, max_size=3),
    dtypes=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)
def test_reads_rows_where_they_are_stored_for_any_shape(
    n_rows: int, width: int, counts: list[int], dtypes: tuple[torch.dtype, torch.dtype], seed: int
) -> None:
    problem = addressed(n_rows, width, counts, dtypes, seed)
    out_TN, g_TPD, sources = there(problem)
    kernels.contract_rows_(out_TN, g_TPD, sources)
    assert_close(out_TN, exact(problem), TOLERANCE[dtypes])


@settings(max_examples=60, deadline=None)
@given(
    n_rows=st.integers(0, 5),
    width=st.sampled_from([1, 2, 7]),
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    dtypes=st.sampled_from([DTYPES[0], DTYPES[4]]),
    seed=st.integers(0, 999),
)
def test_torch_gathers_and_gets_the_same(
    n_rows: int, width: int, counts: list[int], dtypes: tuple[torch.dtype, torch.dtype], seed: int
) -> None:
    problem = addressed(n_rows, width, counts, dtypes, seed)
    out_TN = problem[0].clone()
    public.contract_rows_(out_TN, *problem[1:])
    assert_close(out_TN, exact(problem), TOLERANCE[dtypes])


@pytest.mark.few
@each_dtype
@pytest.mark.parametrize("shape", SHAPES[2:5], ids=lambda shape: "T{}-D{}-{}".format(*shape))
def test_rows_side_by_side_equal_the_specification(
    shape: tuple[int, int, list[int]], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    out_TN, g_TPD, source_nD, ptr, column = draw(*shape, torch.float64)
    g_TPD, source_nD = g_TPD.to(dtypes[0]), source_nD.to(dtypes[1])
    expected = contract(out_TN, g_TPD.double(), source_nD.double(), torch.tensor(ptr), torch.tensor(column))
    found = out_TN.to(DEVICE)
    kernels.contract_(found, g_TPD.to(DEVICE), source_nD.to(DEVICE), ptr, column)
    assert_close(found, expected, TOLERANCE[dtypes])


def test_error_vectors_are_sources_too() -> None:
    """One a position, next to the features, in the same launch."""
    out_TN, g_TPD, sources = addressed(3, 7, [2, 0, 3], DTYPES[1], seed=1)
    error_PD = torch.randn(3, 7)
    order = torch.tensor([0, 1, 5, 6, 2, 3, 4, 7])  # features of position 0, its error, ...

    def joined(of_features: Tensor, of_errors: Tensor) -> Tensor:
        return torch.cat([of_features, of_errors])[order]

    both = AddressedRows(
        [*sources.tables, error_PD],
        joined(sources.table, torch.full((3,), 3)),
        joined(sources.row, torch.arange(3)),
        joined(sources.scale, torch.ones(3)),
        joined(sources.column, torch.arange(3) + out_TN.shape[1]),
        [0, 3, 4, 8],
    )
    wide = torch.cat([out_TN, torch.zeros(3, 3)], 1)
    found, g, moved = there((wide, g_TPD, both))
    kernels.contract_rows_(found, g, moved)
    width = out_TN.shape[1]
    assert_close(found[:, :width], exact((out_TN, g_TPD, sources)), 1e-6)
    assert_close(found[:, width:], torch.einsum("tpd,pd->tp", g_TPD.double(), error_PD.double()), 1e-6)


def test_columns_of_others_and_rows_beyond_are_not_touched() -> None:
    out_TN, g_TPD, sources = problem = addressed(3, 8, [2, 0, 3], DTYPES[2], seed=2)
    expected = exact(problem)
    mine = torch.zeros(out_TN.shape[1], dtype=torch.bool)
    mine[sources.column] = True
    wide = torch.full((9, out_TN.shape[1] + 5), torch.nan)
    wide[2:5, : out_TN.shape[1]][:, mine] = out_TN[:, mine]
    wide, g_TPD, sources = there((wide, g_TPD, sources))
    kernels.contract_rows_(wide[2:5, : len(mine)], g_TPD, sources)
    wide = wide.cpu()
    assert_close(wide[2:5, : len(mine)][:, mine], expected[:, mine], 1e-6)
    wide[2:5, : len(mine)][:, mine] = torch.nan
    assert wide.isnan().all()


def test_rows_that_end_early_do_not_look_at_later_sources() -> None:
    out_TN, g_TPD, sources = addressed(3, 8, [2, 1, 3, 2], DTYPES[1], seed=3)
    short = g_TPD[:, :2].contiguous()
    expected = exact((out_TN, short, sources))
    sources.scale[sources.ptr[2] :] = torch.nan
    found, short, sources = there((out_TN, short, sources))
    kernels.contract_rows_(found, short, sources)
    assert_close(found, expected, 1e-6)


@each_dtype
def test_infinity_is_infinity(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Also where float32 is cut into pieces: infinity less infinity must not get into the sum."""
    out_TN, g_TPD, sources = problem = addressed(2, 3, [2], dtypes, seed=4)
    g_TPD[0, 0, 0] = torch.inf
    expected = exact(problem)
    found, g_TPD, sources = there(problem)
    kernels.contract_rows_(found, g_TPD, sources)
    touched = torch.zeros_like(out_TN, dtype=torch.bool)
    touched[0, sources.column.cpu()] = True
    assert torch.equal(found.cpu()[touched].double(), expected[touched])
    assert found.cpu()[~touched].isfinite().all()


def test_rows_may_be_so_wide_that_offsets_need_64_bits() -> None:
    """Long prompts with many features: 2^28 columns, of which three are touched (memory that nobody touches costs nothing)."""
    out_TN, g_TPD, sources = there(addressed(9, 8, [1, 2], (torch.float32, torch.float32), seed=8))
    wide_TN = torch.empty(9 * 2**28, dtype=torch.float32, device=out_TN.device).view(9, 2**28)
    for out in (out_TN, wide_TN):
        out[:, sources.column] = 0
        kernels.contract_rows_(out, g_TPD, sources)
    assert torch.equal(wide_TN[:, sources.column], out_TN[:, sources.column])


def test_two_runs_are_bitwise_equal() -> None:
    out_TN, g_TPD, sources = there(addressed(17, 63, [3, 18], DTYPES[2], seed=5))
    runs = [out_TN.clone(), out_TN.clone()]
    for run in runs:
        kernels.contract_rows_(run, g_TPD, sources)
    assert torch.equal(*runs)


def test_can_be_compiled_into_a_graph() -> None:
    out_TN, g_TPD, sources = there(addressed(3, 8, [2, 0, 3], DTYPES[2], seed=6))
    tables = sources.tables

    def step(out: Tensor, g: Tensor, scale: Tensor) -> Tensor:
        rows = AddressedRows(tables, sources.table, sources.row, scale, sources.column, sources.ptr)
        kernels.contract_rows_(out, g.sin(), rows)
        return out.cos()

    plain, traced = out_TN.clone(), out_TN.clone()
    expected = step(plain, g_TPD, sources.scale)
    found = torch.compile(step, backend="aot_eager", fullgraph=True)(traced, g_TPD, sources.scale)
    assert torch.equal(found, expected)
    assert torch.equal(traced, plain)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_public_functions_take_the_kernel_on_a_gpu() -> None:
    out_TN, g_TPD, sources = there(addressed(17, 63, [3, 18], DTYPES[2], seed=7))
    found, expected = out_TN.clone(), out_TN.clone()
    public.contract_rows_(found, g_TPD, sources)
    kernels.contract_rows_(expected, g_TPD, sources)
    assert torch.equal(found, expected)
