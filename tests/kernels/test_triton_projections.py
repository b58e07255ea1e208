"""Products of digits keep float32's accuracy: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed here")

from circuit_tracer.kernels import attend_back
from circuit_tracer.kernels.attend_back.cases import draw as draw_attention
from circuit_tracer.kernels.attend_back.projections import digits_of, project_
from circuit_tracer.kernels.device import kernels_on
from circuit_tracer.kernels.product import add_product_, factor, product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(n_rows: int, width: int, n_columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Result so far, rows, weights; rows of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    out, row = torch.randn(n_rows, n_columns, generator=generator), torch.randn(n_rows, width, generator=generator)
    row *= torch.logspace(-6, 6, n_rows)[:, None]
    return out, row, torch.randn(width, n_columns, generator=generator).to(dtype)


def projected(out: Tensor, row: Tensor, weight: Tensor, add: bool = False) -> Tensor:
    found = out.to(DEVICE, copy=True)
    project_(found, row.to(DEVICE), weight.to(DEVICE), add)
    return found.cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(17, 70, 18), (1, 1, 1), (5, 33, 3), (3, 0, 4), (0, 3, 4)], ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_every_element_is_within_the_bound(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """2^-23 of the sum of sizes for the products that are left out, 2^-24 a sum of the accumulation; 1e-6 relative."""
    out, row, weight = draw(*shape, dtype)
    exact, sizes = row.double() @ weight.double(), row.double().abs() @ weight.double().abs()
    found = projected(torch.full_like(out, torch.nan), row, weight)
    error = (found.double() - exact).abs()
    left_out = 2.0**-23 if dtype is torch.float32 else 0.0
    assert bool((error <= (left_out + 2.0**-24 * (shape[1] + 2)) * sizes).all())
    assert bool((error.norm(dim=1) <= 1e-6 * exact.norm(dim=1)).all())
    added = projected(out, row, weight, add=True)
    assert torch.equal(added, found + out)


@pytest.mark.parametrize("exponent", [0, 30, -30, 100, -90])
def test_three_digits_are_the_number(exponent: int) -> None:
    number = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 2.0**exponent
    digits = digits_of(number)
    assert digits.dtype is torch.bfloat16
    assert digits.shape == (3, 64, 64)
    assert torch.equal(digits.double().sum(0), number.double())
    assert digits_of(number.bfloat16()).shape == (1, 64, 64)


def test_errors_are_those_of_float32_not_of_tf32() -> None:
    """A sum that cancels: one product of 11 bits would be off by a thousandth, two by a few millionths of it."""
    row = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    row = torch.cat([row, -row + 2.0**-10 * row.flip(1)], 1)
    half = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    weight = torch.cat([half, half])
    exact = row.double() @ weight.double()
    error = (projected(torch.zeros(4, 8), row, weight).double() - exact).norm() / exact.norm()
    plain = (row @ weight).double().sub(exact).norm() / exact.norm()
    assert error <= 4 * plain


def test_what_is_not_finite_stays_so_and_in_its_row() -> None:
    out, row, weight = draw(4, 20, 5, torch.float32)
    row[1, 3], row[2, 4] = torch.inf, torch.nan
    found, expected = projected(out, row, weight), row @ weight
    assert bool(found[1].isinf().all())
    assert torch.equal(found[1], expected[1])
    assert bool(found[2].isnan().all())
    assert bool(found[[0, 3]].isfinite().all())


def test_weights_may_be_transposed_and_results_part_of_more() -> None:
    out, row, weight = draw(6, 34, 9, torch.float32)
    wide = torch.zeros(6, 20, device=DEVICE)
    project_(wide[:, 3:12], row.to(DEVICE), weight.T.contiguous().T.to(DEVICE))
    assert torch.equal(wide[:, 3:12].cpu(), projected(out, row, weight))
    assert not wide[:, :3].any()
    assert not wide[:, 12:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_weight_made_ready_once_gives_the_same(dtype: torch.dtype) -> None:
    out, row, weight = draw(12, 33, 9, dtype)
    weight, row, out = weight.to(DEVICE), row.to(DEVICE), out.to(DEVICE)
    with kernels_on(DEVICE):
        ready = factor(weight, torch.float32)
        assert ready.shape == (1 if dtype is torch.bfloat16 else 3, 33, 9)
        assert factor(weight, torch.float64).dtype is torch.float64
    assert (ready.data_ptr() == weight.data_ptr()) == (dtype is torch.bfloat16)  # which takes no memory of its own
    expected = projected(torch.zeros(12, 9), row, weight if dtype is torch.bfloat16 else weight.float())
    assert torch.equal(product(row, ready).cpu(), expected)
    assert torch.equal(product(row.unflatten(0, (3, 4)), ready).cpu(), expected.unflatten(0, (3, 4)))
    added = out.clone()
    add_product_(added, row, ready)
    assert torch.equal(added.cpu(), expected + out.cpu())
    with pytest.raises(RuntimeError, match="view"):  # and not a sum that is lost
        add_product_(out.unflatten(0, (3, 4)).transpose(0, 1), row.unflatten(0, (3, 4)), ready)


@pytest.mark.parametrize("several", [False, True])
def test_attention_takes_weights_made_ready(several: bool) -> None:
    g, pattern, output, value = (each.to(DEVICE) for each in draw_attention(3, 7, 20, 1, 2, 4, torch.float32))
    found, expected = g.clone(), g.clone()
    with kernels_on(DEVICE):
        ready = factor(output, torch.float32), factor(value, torch.float32)
        if several:
            patterns, prompt = torch.stack([pattern.flip(0), pattern]), torch.tensor([1, 0, 1], device=DEVICE)
            attend_back.attend_back_several_(found, patterns, prompt, *ready)
            attend_back.attend_back_several_(expected, patterns, prompt, output, value)
        else:
            attend_back.attend_back_(found, pattern, *ready)
            attend_back.attend_back_(expected, pattern, output, value)
    torch.testing.assert_close(found, expected, rtol=1e-5 if several else 0, atol=1e-5 if several else 0)
