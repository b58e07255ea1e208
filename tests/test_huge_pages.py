"""Large arrays in large pages are arrays like others."""

from __future__ import annotations

import pytest
import torch

from circuit_tracer import huge_pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float64], ids=str)
@pytest.mark.parametrize("n_rows", [0, 3, 5001], ids=lambda n: f"{n}rows")
def test_zeros_can_be_written_and_read(dtype: torch.dtype, n_rows: int) -> None:
    array = huge_pages.zeros((n_rows, 1024), dtype)
    assert (array.shape, array.dtype, array.is_contiguous()) == ((n_rows, 1024), dtype, True)
    assert not array.any()
    array.fill_(3)
    assert (array == 3).all()
    like = huge_pages.empty((n_rows, 1024), dtype)
    assert (like.shape, like.dtype) == (array.shape, dtype)
    assert torch.equal(like.copy_(array), array)


def test_a_view_keeps_the_memory() -> None:
    view = huge_pages.zeros((2048, 1024), torch.float32)[7]
    assert not view.add_(1).sub_(1).any()


def test_where_the_system_has_none_arrays_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("mmap.MADV_HUGEPAGE", raising=False)
    assert not huge_pages.zeros((2048, 1024), torch.float32).any()
    assert huge_pages.empty((2048, 1024), torch.float32).shape == (2048, 1024)


def test_where_memory_is_at_an_end_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", no_room)
    assert not huge_pages.zeros((2048, 1024), torch.float32).any()
    assert huge_pages.empty((2048, 1024), torch.float32).shape == (2048, 1024)
