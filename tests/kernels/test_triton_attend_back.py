"""Attention pulled back by Triton kernels equals its specification: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

from dataclasses import fields
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.kernels import attend_back as public
from circuit_tracer.kernels.attend_back import Scores
from circuit_tracer.kernels.attend_back import naive as specification
from circuit_tracer.kernels.attend_back.cases import cast, draw, draw_scores

pytest.importorskip("triton", reason="triton is not installed here")

from circuit_tracer.kernels.attend_back import triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Relative RMS error of what is added to the rows. In bfloat16 projections, mixed values and the sum are rounded one after the
# other, in the interpreter by cutting bits off: four units in the last place.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps}
RECOMPUTED = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)

# T, P, D, kv heads, query heads a kv head, d_head
SHAPES = [(1, 1, 1, 1, 1, 1), (0, 3, 4, 1, 1, 2), (2, 7, 63, 1, 2, 3), (3, 19, 5, 2, 1, 16), (2, 4, 9, 1, 3, 33)]
KINDS = ("plain", "window", "softcap", "everything")
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "T{}-P{}-D{}-K{}-G{}-d{}".format(*shape))


def there(scores: Scores) -> Scores:
    """On the device where kernels run."""
    parts = {field.name: getattr(scores, field.name) for field in fields(scores)}
    return Scores(**{name: part.to(DEVICE) if isinstance(part, Tensor) else part for name, part in parts.items()})


def assert_added(found: Tensor, expected: Tensor, before: Tensor, tolerance: float) -> None:
    """Both less what was there before; rounding is relative to the rows themselves as well."""
    assert found.shape == expected.shape
    if expected.numel():
        error = (found.cpu().double() - expected).square().mean().sqrt()
        scale = (expected - before.double()).square().mean().sqrt() + before.double().square().mean().sqrt()
        assert error <= tolerance * scale


def assert_specified(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> None:
    parts = draw(*shape, torch.float64, seed)
    g, pattern, output, value = (part.to(dtype) for part in parts)
    expected = specification.attend_back(*(part.double() for part in (g, pattern, output, value)))
    found = g.clone().to(DEVICE)
    kernels.attend_back_(found, *(part.to(DEVICE) for part in (pattern, output, value)))
    assert_added(found, expected, g, TOLERANCE[dtype])


@pytest.mark.few
@each_dtype
@each_shape
@pytest.mark.usefixtures("poisoned_memory")
def test_stored_pattern_equals_the_specification(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_specified(shape, dtype)


@settings(max_examples=12, deadline=None)
@given(
    n_rows=st.integers(0, 3),
    n_pos=st.sampled_from([1, 5, 17]),
    d_model=st.sampled_from([1, 7]),
    n_kv=st.integers(1, 2),
    groups=st.integers(1, 2),
    d_head=st.sampled_from([1, 5, 17]),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 999),
)
def test_stored_pattern_equals_the_specification_for_any_shape(
    n_rows: int, n_pos: int, d_model: int, n_kv: int, groups: int, d_head: int, dtype: torch.dtype, seed: int
) -> None:
    assert_specified((n_rows, n_pos, d_model, n_kv, groups, d_head), dtype, seed)


def assert_recomputed(shape: tuple[int, ...], scores: Scores, dtype: torch.dtype, seed: int = 0) -> None:
    g, _, output, value = (part.to(dtype) for part in draw(*shape, torch.float64, seed))
    wide = cast(scores, torch.float64)
    expected = specification.attend_back_recomputed(g.double(), wide, output.double(), value.double())
    found = g.clone().to(DEVICE)
    kernels.attend_back_recomputed_(found, there(scores), output.to(DEVICE), value.to(DEVICE))
    assert_added(found, expected, g, RECOMPUTED[dtype])


@pytest.mark.few
@pytest.mark.parametrize(("kind", "shape", "dtype"), list(product(KINDS, SHAPES, TOLERANCE)), ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_pattern_made_anew_equals_the_specification(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    _, n_pos, _, n_kv, groups, d_head = shape
    whole = kind == "everything"
    scores = draw_scores(
        n_pos,
        n_kv,
        groups,
        d_head,
        dtype,
        3 if whole or kind == "window" else 99,
        whole or kind == "softcap",
        whole,
        seed=1,
    )
    assert_recomputed(shape, scores, dtype)


@settings(max_examples=12, deadline=None)
@given(
    n_pos=st.sampled_from([1, 5, 17, 33]),
    beyond=st.integers(0, 3),
    n_kv=st.integers(1, 2),
    groups=st.integers(1, 2),
    window=st.integers(1, 20),
    softcap=st.booleans(),
    scale=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 999),
)
def test_pattern_made_anew_equals_the_specification_for_any_shape(
    n_pos: int,
    beyond: int,
    n_kv: int,
    groups: int,
    window: int,
    softcap: bool,
    scale: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Rows may end before the prompt does; a strip of keys is 16 wide here."""
    scores = draw_scores(n_pos + beyond, n_kv, groups, 3, dtype, window, softcap, scale, seed)
    previous, kernels.STRIP_BYTES = kernels.STRIP_BYTES, 1
    try:
        assert_recomputed((2, n_pos, 5, n_kv, groups, 3), scores, dtype, seed)
    finally:
        kernels.STRIP_BYTES = previous


@pytest.mark.parametrize("x", [0.0, 1e-6, 1e-3, 0.2499, 0.2501, 1.0, 9.0, 50.0])
def test_softcap_is_exact_to_rounding(x: float) -> None:
    """tanh is made of exponentials and a series."""
    one = torch.ones(1, 1, 1)
    scores = Scores(one * x, one, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), scaling=1.0, softcap=1.0)
    strip = torch.full((1, 1, 1), torch.nan, device=DEVICE)
    kernels.pattern_(strip, there(scores), 0, 0)
    expected = torch.tensor(x, dtype=torch.float64).tanh()
    assert abs(float(strip.cpu().double().log()) - expected) <= 3e-7


def test_takes_strided_weights_and_patterns() -> None:
    g, pattern, output, value = draw(3, 5, 8, 2, 2, 3, torch.float32)
    expected = specification.attend_back(*(part.double() for part in (g, pattern, output, value)))
    wide = torch.full((4, 9, 9), torch.nan)
    wide[:, :5, :5] = pattern
    for stored in (wide[:, :5, :5], pattern.transpose(1, 2).contiguous().transpose(1, 2)):
        found = g.clone().to(DEVICE)
        kernels.attend_back_(found, *(part.to(DEVICE) for part in (stored, output.T.contiguous().T, value)))
        assert_added(found, expected, g, TOLERANCE[torch.float32])


def test_takes_weights_in_bfloat16_exactly() -> None:
    """Rows and pattern in float32: nothing of either is rounded to the weights' format."""
    g, pattern, output, value = draw(3, 19, 40, 2, 2, 16, torch.float32)
    output, value = output.bfloat16(), value.bfloat16()
    expected = specification.attend_back(*(part.double() for part in (g, pattern, output, value)))
    found = g.clone().to(DEVICE)
    kernels.attend_back_(found, *(part.to(DEVICE) for part in (pattern, output, value)))
    assert_added(found, expected, g, 1e-6)


def test_rows_do_not_see_each_other() -> None:
    g, pattern, output, value = draw(4, 5, 8, 2, 2, 3, torch.float32)
    expected = specification.attend_back(*(part.double() for part in (g, pattern, output, value)))
    found = g.clone()
    found[1] = torch.nan
    found = found.to(DEVICE)
    kernels.attend_back_(found, *(part.to(DEVICE) for part in (pattern, output, value)))
    assert found[1].isnan().all()
    others = [0, 2, 3]
    assert_added(found[others], expected[others], g[others], TOLERANCE[torch.float32])


@pytest.mark.parametrize("bytes_in_flight", [1, 10**9])
def test_chunks_of_rows_change_nothing_but_rounding(bytes_in_flight: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BYTES_IN_FLIGHT_ON_GPU", bytes_in_flight)
    assert_specified((3, 7, 5, 1, 2, 3), torch.float32)


@pytest.mark.slow("takes 1.6 s")
def test_two_runs_are_bitwise_equal() -> None:
    g, pattern, output, value = (part.to(DEVICE) for part in draw(3, 19, 8, 2, 2, 17, torch.float32))
    runs = [g.clone(), g.clone()]
    for run in runs:
        kernels.attend_back_(run, pattern, output, value)
    assert torch.equal(*runs)


@pytest.mark.slow("takes 2.1 s")
def test_can_be_compiled_into_a_graph() -> None:
    g, pattern, output, value = (part.to(DEVICE) for part in draw(2, 5, 8, 2, 2, 3, torch.float32))

    def step(rows: Tensor) -> Tensor:
        kernels.attend_back_(rows, pattern, output, value)
        return rows.cos()

    plain, traced = g.clone(), g.clone()
    expected = step(plain)
    assert torch.equal(torch.compile(step, backend="aot_eager", fullgraph=True)(traced), expected)
    assert torch.equal(traced, plain)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_public_functions_take_the_kernels_on_a_gpu() -> None:
    g, pattern, output, value = (part.to(DEVICE) for part in draw(3, 19, 8, 2, 2, 17, torch.float32))
    found, expected = g.clone(), g.clone()
    public.attend_back_(found, pattern, output, value)
    kernels.attend_back_(expected, pattern, output, value)
    assert torch.equal(found, expected)
