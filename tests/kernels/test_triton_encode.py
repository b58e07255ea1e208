"""`encode` and `encode_top_k` as a Triton kernel equal their specification: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel_encode import (
    PATTERNS,
    Problem,
    assert_repeats,
    assert_same,
    exact,
    spoil,
)
from torch import Tensor

from circuit_tracer.kernels import encode as public
from circuit_tracer.kernels.encode import naive as specification
from circuit_tracer.kernels.encode.cases import draw
from circuit_tracer.kernels.sparse_activations import SparseActivations

pytest.importorskip("triton", reason="triton is not installed here")

from circuit_tracer.kernels.encode import triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Dtypes = tuple[torch.dtype, torch.dtype]

# Relative RMS error of values, by the dtype of x and of the weights: sums are in float32 (float64).
TOLERANCE = {
    (torch.float64, torch.float64): 1e-14,
    (torch.float32, torch.float32): 1e-6,
    (torch.float32, torch.bfloat16): 1e-6,
    (torch.bfloat16, torch.bfloat16): 1e-6,
    (torch.float64, torch.bfloat16): 1e-14,
}
DTYPES = list(TOLERANCE)
each_dtype = pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(str(d)[6:] for d in pair))
SHAPES = [(1, 1, 1), (0, 60, 7), (5, 1, 7), (17, 63, 18), (33, 7, 5), (3, 576, 4), (2, 2304, 3)]  # B, D, F
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "B{}-D{}-F{}".format(*shape))


def there(*tensors: Tensor) -> list[Tensor]:
    """On the device where kernels run."""
    return [tensor.to(DEVICE) for tensor in tensors]


def encoded(problem: Problem) -> SparseActivations:
    return here(kernels.encode(*there(*problem)))


def here(entries: SparseActivations) -> SparseActivations:
    parts = (entries.row_ptr, entries.feature, entries.value)
    return SparseActivations(*(part.cpu() for part in parts), entries.n_features)


def assert_specified(found: SparseActivations, expected: SparseActivations, problem: Problem) -> None:
    """On a grid of numbers whose sums of products are exact, so must every decision and value be."""
    assert found.row_ptr.dtype == found.feature.dtype == torch.int64
    assert found.value.dtype == (torch.float64 if problem[0].dtype is torch.float64 else torch.float32)
    assert_same(found, expected)


@pytest.mark.few
@each_dtype
@each_shape
def test_finds_exactly_the_entries_of_the_specification(shape: tuple[int, int, int], dtypes: Dtypes) -> None:
    pattern = PATTERNS[(shape[1] + DTYPES.index(dtypes)) % len(PATTERNS)]
    problem = draw(*shape, dtypes, pattern)
    assert_specified(encoded(problem), exact(problem), problem)


@settings(max_examples=15, deadline=None)
@given(
    n_rows=st.integers(0, 18),
    width=st.sampled_from([1, 2, 63]),
    n_features=st.sampled_from([1, 5, 17]),
    dtypes=st.sampled_from(DTYPES),
    pattern=st.sampled_from(PATTERNS),
    seed=st.integers(0, 999),
)
def test_finds_exactly_the_entries_of_the_specification_for_any_shape(
    n_rows: int, width: int, n_features: int, dtypes: Dtypes, pattern: str, seed: int
) -> None:
    problem = draw(n_rows, width, n_features, dtypes, pattern, seed)
    assert_specified(encoded(problem), exact(problem), problem)


@pytest.mark.slow("takes 1.5 s")
@settings(max_examples=15, deadline=None)
@given(
    n_rows=st.integers(0, 18),
    n_features=st.sampled_from([1, 5, 17, 40]),
    k=st.integers(1, 9),
    dtypes=st.sampled_from(DTYPES),
    lowered=st.booleans(),
    seed=st.integers(0, 999),
)
def test_top_k_equals_the_specification(
    n_rows: int, n_features: int, k: int, dtypes: Dtypes, lowered: bool, seed: int
) -> None:
    """With ties, and with fewer than k positive pre-activations."""
    x_BD, weight_FD, bias_F, _ = problem = draw(n_rows, 2, n_features, dtypes, seed=seed)
    if lowered:
        bias_F -= 2
    expected = specification.encode_top_k(*(part.double() for part in (x_BD, weight_FD, bias_F)), k)
    assert_specified(here(kernels.encode_top_k(*there(x_BD, weight_FD, bias_F), k)), expected, problem)


@settings(max_examples=60, deadline=None)
@given(
    n_rows=st.integers(0, 5),
    n_features=st.integers(1, 9),
    k=st.integers(0, 9),
    nan=st.booleans(),
    seed=st.integers(0, 999),
)
def test_torch_finds_the_same_top_k(n_rows: int, n_features: int, k: int, nan: bool, seed: int) -> None:
    x_BD, weight_FD, bias_F, _ = draw(n_rows, 2, n_features, DTYPES[0], seed=seed)
    if nan:
        weight_FD[0] = torch.nan
    expected = specification.encode_top_k(x_BD, weight_FD, bias_F, k)
    assert_same(public.encode_top_k(x_BD, weight_FD, bias_F, k), expected)


@pytest.mark.few
@pytest.mark.parametrize("place", ["x", "weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtypes", DTYPES[1:4], ids=str)
def test_what_is_not_finite_stays_in_its_token_or_feature(dtypes: Dtypes, place: str, value: float) -> None:
    """NaN is above no cut, infinity above every finite one, also where float32 is cut into pieces."""
    problem = spoil(draw(5, 7, 9, dtypes), place, value)
    assert_specified(encoded(problem), exact(problem), problem)
    expected = specification.encode_top_k(*(part.double() for part in problem[:3]), 2)
    assert_specified(here(kernels.encode_top_k(*there(*problem[:3]), 2)), expected, problem)


def test_nan_cuts_and_infinite_cuts() -> None:
    x_BD, weight_FD, bias_F, cut_F = draw(5, 7, 9, DTYPES[1])
    cut_F[0], cut_F[1], cut_F[2], bias_F[3], bias_F[4] = torch.nan, torch.inf, -torch.inf, torch.inf, -torch.inf
    problem = x_BD, weight_FD, bias_F, cut_F
    assert_specified(encoded(problem), exact(problem), problem)


@pytest.mark.few
@each_dtype
def test_values_are_those_of_the_specification_to_rounding(dtypes: Dtypes) -> None:
    problem = draw(17, 576, 5, dtypes, "all", grid=False)
    found, expected = encoded(problem), exact(problem)
    assert torch.equal(found.feature, expected.feature)
    error = (found.value.double() - expected.value).square().mean().sqrt()
    assert error <= TOLERANCE[dtypes] * expected.value.square().mean().sqrt()


@pytest.mark.few
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_nothing_of_the_result_is_left_unwritten(pattern: str) -> None:
    problem = draw(17, 7, 18, DTYPES[2], pattern)
    assert_specified(encoded(problem), exact(problem), problem)


@pytest.mark.few
@pytest.mark.parametrize("room", [1, 3, 10**9], ids=lambda room: f"one-in-{room}")
@pytest.mark.parametrize("block", [1, 40, 10**9])
def test_room_and_blocks_change_nothing(room: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROOM", room)
    monkeypatch.setattr(kernels, "MAX_PRE_ACTIVATIONS", block)
    problem = draw(3, 7, 18, DTYPES[2])
    assert_specified(encoded(problem), exact(problem), problem)


def test_takes_slices_and_leaves_its_inputs_alone() -> None:
    problem = draw(5, 20, 9, DTYPES[2])
    x_BD, weight_FD, bias_F, cut_F = there(*problem)
    wide = [torch.full((len(t), 60), torch.nan, dtype=t.dtype, device=DEVICE) for t in (x_BD, weight_FD)]
    for whole, part in zip(wide, (x_BD, weight_FD), strict=True):
        whole[:, 7:27] = part
    inputs = [whole[:, 7:27] for whole in wide]
    before = [tensor.clone() for tensor in inputs]
    assert_specified(here(kernels.encode(*inputs, bias_F, cut_F)), exact(problem), problem)
    for tensor, kept in zip(inputs, before, strict=True):
        assert torch.equal(tensor, kept)
    transposed = [part.T.contiguous().T for part in (x_BD, weight_FD)]
    assert_specified(here(kernels.encode(*transposed, bias_F, cut_F)), exact(problem), problem)


@pytest.mark.slow("takes 1.3 s")
def test_two_runs_are_bitwise_equal() -> None:
    problem = there(*draw(40, 63, 37, DTYPES[2], grid=False))
    assert_repeats(lambda: kernels.encode(*problem))
    assert_repeats(lambda: kernels.encode_top_k(*problem[:3], 3))


def _step(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, cut_F: Tensor) -> tuple[Tensor, Tensor]:
    entries = kernels.encode(x_BD.relu(), weight_FD, bias_F, cut_F)
    return entries.value.square(), entries.feature + 1


@pytest.mark.slow("takes 1.3 s")
def test_can_be_compiled_into_a_graph() -> None:
    problem = there(*draw(5, 7, 9, DTYPES[2]))
    expected = _step(*problem)
    found = torch.compile(_step, backend="aot_eager", fullgraph=True)(*problem)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_public_functions_take_the_kernel_on_a_gpu() -> None:
    problem = there(*draw(40, 63, 37, DTYPES[2], grid=False))
    assert_same(here(public.encode(*problem)), here(kernels.encode(*problem)))
    assert_same(here(public.encode_top_k(*problem[:3], 3)), here(kernels.encode_top_k(*problem[:3], 3)))
