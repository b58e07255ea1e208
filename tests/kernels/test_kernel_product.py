"""`product` is a matrix product, whichever library computes it, and needs nothing of what lies behind its rows."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor

from circuit_tracer.kernels import product as module
from circuit_tracer.kernels.product import FEWEST_ROWS, STEP, add_product_, in_steps, product

ROWS = [0, 1, FEWEST_ROWS - 1, FEWEST_ROWS, 3 * STEP, 3 * STEP + 1, 200]
PREFERS_ONEDNN = module._prefers_onednn  # what the fixture replaces


@pytest.fixture(autouse=True, params=["oneDNN", "torch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "oneDNN" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(module, "_prefers_onednn", lambda: request.param == "oneDNN")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def assert_is_product(x: Tensor, weight: Tensor) -> None:
    before, found, expected = x.clone(), product(x, weight), x.double() @ weight.double()
    assert found.dtype == x.dtype
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-12 if x.dtype == torch.float64 else 1e-4)
    assert torch.equal(x, before)
    added = torch.ones_like(found)
    add_product_(added, x, weight)
    torch.testing.assert_close(added, found + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n_rows", ROWS)
def test_is_the_product(n_rows: int, dtype: torch.dtype) -> None:
    assert_is_product(drawn(n_rows, 72).to(dtype), drawn(72, 80).to(dtype))


def test_what_lies_behind_the_rows_does_not_matter() -> None:
    n_rows, weight = 2 * STEP + 3, drawn(72, 80).float()
    room = torch.full((in_steps(n_rows) + 4, 72), torch.nan)
    room[:n_rows] = drawn(n_rows, 72)
    assert_is_product(room[:n_rows], weight)
    assert torch.equal(product(room[:n_rows], weight), product(room[:n_rows].clone(), weight))  # the clone has no room


@pytest.mark.parametrize("view", ["columns", "transposed", "behind"])
def test_takes_views(view: str) -> None:
    x = {"columns": drawn(100, 90)[:, 9:81], "transposed": drawn(72, 100).T, "behind": drawn(130, 72)[30:]}[view]
    whole = x.float() if view != "columns" else drawn(100, 90).float()[:, 9:81]
    assert_is_product(whole, drawn(80, 72).float().T)


def test_gradients_pass() -> None:
    x, weight = drawn(100, 72).float().requires_grad_(), drawn(72, 80).float()
    product(x, weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(1).expand(100, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("maker", "expected"), [("vendor_id\t: GenuineIntel", False), ("vendor_id\t: AuthenticAMD", True)]
)
def test_the_maker_decides(maker: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for name in ("mkl", "mkldnn"):
        monkeypatch.setattr(getattr(torch.backends, name), "is_available", lambda: True)
    monkeypatch.setattr(module, "_made_by", lambda: maker)
    assert PREFERS_ONEDNN.__wrapped__() == expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert PREFERS_ONEDNN.__wrapped__()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not PREFERS_ONEDNN.__wrapped__()


def test_reads_who_made_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._made_by() or not platform.processor()
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(FileNotFoundError))
    monkeypatch.setattr(platform, "processor", lambda: "Intel64 Family 6 Model 143, GenuineIntel")
    assert "GenuineIntel" in module._made_by()
