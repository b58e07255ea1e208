"""The decoder's Triton kernels equal their specification: interpreted on a CPU, compiled where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel_decode import Dtypes, Problem, assert_close, each_pattern, exact
from torch import Tensor

from circuit_tracer.kernels import decode
from circuit_tracer.kernels.decode import naive as specification
from circuit_tracer.kernels.decode.cases import PATTERNS, draw
from circuit_tracer.kernels.decode.segments import Segments
from circuit_tracer.kernels.sparse_activations import SparseActivations

pytest.importorskip("triton", reason="triton is not installed here")

from circuit_tracer.kernels.decode import triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Relative RMS error, by the dtype of gradients and of the weights. Sums are in float32 (float64) and are rounded once, to the
# dtype of the gradients: half a unit in the last place, a whole one in the interpreter, which cuts bits off.
TOLERANCE = {
    (torch.float64, torch.float64): 1e-14,
    (torch.float32, torch.float32): 1e-6,
    (torch.float32, torch.bfloat16): 1e-6,
    (torch.bfloat16, torch.bfloat16): torch.finfo(torch.bfloat16).eps,
}
DTYPES = list(TOLERANCE)
SHAPES = [(1, 1, 1), (0, 3, 5), (5, 1, 63), (3, 4, 576), (2, 2, 2304), (130, 1, 3)]  # B, F, C


def there(problem: Problem) -> Problem:
    """On the device where kernels run."""
    grad_BC, entries, weight_FC = problem
    parts = (entries.row_ptr, entries.feature, entries.value)
    moved = SparseActivations(*(part.to(DEVICE) for part in parts), entries.n_features)
    return grad_BC.to(DEVICE), moved, weight_FC.to(DEVICE)


def here(found: Tensor) -> Tensor:
    return found.cpu()


def decoded(problem: Problem) -> Tensor:
    out_BC, entries, weight_FC = problem
    out_BC = out_BC.clone()
    kernels.decode_(out_BC, entries, weight_FC)
    return here(out_BC)


def assert_specified(problem: Problem, dtypes: Dtypes) -> None:
    """All products, each gradient alone and both at once."""
    reference, tolerance = exact(problem), TOLERANCE[dtypes]
    grad_BC, entries, weight_FC = on_device = there(problem)
    n_features = len(weight_FC)
    if dtypes[0] is not torch.bfloat16:
        assert_close(decoded(on_device), specification.decode(*reference), tolerance)
    of_values = specification.value_gradients(*reference)
    of_weights = specification.weight_gradients(*reference[:2], 0, n_features)
    both = kernels.gradients(grad_BC, entries, weight_FC)
    for found in (both[0], kernels.value_gradients(grad_BC, entries, weight_FC)):
        assert found.dtype == dtypes[0]
        assert_close(here(found), of_values, tolerance)
    for found in (both[1], kernels.weight_gradients(grad_BC, entries, 0, n_features)):
        assert found.dtype == dtypes[0]
        assert_close(here(found), of_weights, tolerance)


@pytest.mark.few
@pytest.mark.parametrize(("shape", "dtypes"), list(product(SHAPES, DTYPES)), ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_the_specification(shape: tuple[int, int, int], dtypes: Dtypes) -> None:
    pattern = PATTERNS[(shape[2] + DTYPES.index(dtypes)) % len(PATTERNS)]
    assert_specified(draw(*shape, dtypes, pattern), dtypes)


@each_pattern
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_the_specification_whatever_is_active(pattern: str) -> None:
    assert_specified(draw(6, 4, 66, DTYPES[2], pattern), DTYPES[2])


@pytest.mark.slow("takes 2.9 s")
@settings(max_examples=12, deadline=None)
@given(
    n_rows=st.integers(0, 5),
    n_features=st.sampled_from([1, 2, 5]),
    width=st.sampled_from([1, 63, 257]),
    dtypes=st.sampled_from(DTYPES),
    pattern=st.sampled_from(PATTERNS),
    seed=st.integers(0, 999),
)
def test_equals_the_specification_for_any_shape(
    n_rows: int, n_features: int, width: int, dtypes: Dtypes, pattern: str, seed: int
) -> None:
    assert_specified(draw(n_rows, n_features, width, dtypes, pattern, seed), dtypes)


@pytest.mark.parametrize("start", [0, 1, 60], ids=lambda start: f"column{start}")
@pytest.mark.usefixtures("poisoned_memory")
def test_takes_column_slices_and_touches_nothing_else(start: int) -> None:
    dtypes = DTYPES[2]
    problem = draw(5, 7, 66, dtypes)
    out_BC, entries, weight_FC = there(problem)
    wide = [torch.full((len(part), 180), torch.nan, dtype=part.dtype, device=DEVICE) for part in (out_BC, weight_FC)]
    out, weight = (whole[:, start : start + 66] for whole in wide)
    out.copy_(out_BC)
    weight.copy_(weight_FC)
    reference = exact(problem)
    found = kernels.value_gradients(out, entries, weight)
    assert_close(here(found), specification.value_gradients(*reference), TOLERANCE[dtypes])
    rows = torch.full((9, 180), torch.nan, device=DEVICE)
    kernels.weight_gradients(out, entries, 0, 7, rows[1:8, start : start + 66])
    expected = specification.weight_gradients(*reference[:2], 0, 7)
    assert_close(here(rows[1:8, start : start + 66]), expected, TOLERANCE[dtypes])
    kernels.decode_(out, entries, weight)
    assert_close(here(out), specification.decode(*reference), TOLERANCE[dtypes])
    for whole in (wide[0], rows[1:8]):
        assert whole[:, :start].isnan().all()
        assert whole[:, start + 66 :].isnan().all()
    assert rows[0].isnan().all()
    assert rows[8].isnan().all()


def test_rows_may_come_in_any_split() -> None:
    """Blocks of rows of the weights' gradient are, bitwise, the rows of the whole."""
    grad_BC, entries, _ = there(draw(80, 7, 3, DTYPES[1], "hot"))
    whole = kernels.weight_gradients(grad_BC, entries, 0, 7)
    cuts = [0, 0, 1, 3, 7, 7]
    blocks = [kernels.weight_gradients(grad_BC, entries, start, stop) for start, stop in pairwise(cuts)]
    assert [len(block) for block in blocks] == [0, 1, 2, 4, 0]
    assert torch.equal(torch.cat(blocks), whole)


def test_rows_of_silent_features_are_not_looked_at() -> None:
    problem = draw(3, 16, 20, DTYPES[1])
    silent = torch.bincount(problem[1].feature, minlength=16) == 0
    assert silent.sum() > 3
    problem[2][silent] = torch.nan
    assert_specified(problem, DTYPES[1])
    assert kernels.gradients(*there(problem))[0].isfinite().all()


@pytest.mark.few
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", ["out", "value", "weight"])
def test_what_is_not_finite_stays_with_its_token_and_feature(place: str, value: float) -> None:
    problem = draw(5, 7, 20, DTYPES[1])
    grad_BC, entries, weight_FC = problem
    if place == "out":
        grad_BC[4, 5] = value
    elif place == "value":
        entries.value[3] = value
    else:
        weight_FC[int(entries.feature[3]), 5] = value
    assert_specified(problem, DTYPES[1])


def test_two_runs_are_bitwise_equal() -> None:
    problem = there(draw(70, 2, 70, DTYPES[2], "hot"))
    assert torch.equal(decoded(problem), decoded(problem))
    for first, second in zip(kernels.gradients(*problem), kernels.gradients(*problem), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.usefixtures("poisoned_memory")
def test_chunks_change_nothing_but_rounding(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segments.of.__func__, "__defaults__", (chunk,))
    assert_specified(draw(9, 2, 5, DTYPES[1], "hot"), DTYPES[1])


@settings(max_examples=120, deadline=None)
@given(counts=st.lists(st.integers(0, 20), max_size=12), chunk=st.integers(1, 9), data=st.data())
def test_segments_cover_every_entry_once(counts: list[int], chunk: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(counts)))
    stop = data.draw(st.integers(start, len(counts)))
    feature = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    ptr = torch.arange(len(feature) + 1)  # a token for each entry
    segments = Segments.of(SparseActivations(ptr, feature, feature.float(), len(counts)).columns, start, stop, chunk)
    items = [-(-count // chunk) or 1 for count in counts[start:stop]]
    expected = [f for f, n in enumerate(items) for _ in range(n)]
    found = segments.item_feature.tolist()
    assert found[: len(expected)] == expected
    assert set(found[len(expected) :]) <= {stop - start}
    split = [f for f, n in enumerate(items) if n > 1 for _ in range(n)]
    found = segments.slot_feature.tolist()
    assert found[: len(split)] == split
    assert set(found[len(split) :]) <= {stop - start}
    assert segments.slot_ptr.diff().tolist() == [n if n > 1 else 0 for n in items]


def _step(out_BC: Tensor, row_ptr: Tensor, feature: Tensor, value: Tensor, weight_FC: Tensor) -> tuple[Tensor, Tensor]:
    entries = SparseActivations(row_ptr, feature, value, len(weight_FC))
    kernels.decode_(out_BC, entries, weight_FC)
    return kernels.gradients(out_BC.sin(), entries, weight_FC)


@pytest.mark.slow("takes 2.4 s")
def test_can_be_compiled_into_a_graph() -> None:
    out_BC, entries, weight_FC = there(draw(3, 4, 20, DTYPES[2]))
    rest = entries.row_ptr, entries.feature, entries.value, weight_FC
    plain, traced = out_BC.clone(), out_BC.clone()
    expected = _step(plain, *rest)
    compiled: Callable[..., tuple[Tensor, Tensor]] = torch.compile(_step, backend="aot_eager", fullgraph=True)
    found = compiled(traced, *rest)
    assert torch.equal(traced, plain)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_columns_must_be_contiguous() -> None:
    out_BC, entries, weight_FC = there(draw(5, 7, 20, DTYPES[1]))
    with pytest.raises(ValueError, match=r"weight_FC has strides \(1, 7\).*contiguous"):
        kernels.decode_(out_BC, entries, weight_FC.T.contiguous().T)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_public_functions_take_the_kernels_on_a_gpu() -> None:
    out_BC, entries, weight_FC = problem = there(draw(9, 7, 66, DTYPES[2]))
    found = out_BC.clone()
    decode.decode_(found, entries, weight_FC)
    assert torch.equal(here(found), decoded(problem))
    both = decode.gradients(out_BC, entries, weight_FC)
    assert torch.equal(decode.value_gradients(out_BC, entries, weight_FC), both[0])
    assert torch.equal(decode.weight_gradients(out_BC, entries, 0, 7), both[1])
