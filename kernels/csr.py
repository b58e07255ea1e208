"""Sparse CSR tensors, of which torch says once a process that they are in beta."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor


def csr(row_ptr: Tensor, index_n: Tensor, value_n: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse CSR tensor whose parts are known to be right."""
    _hear_that_it_is_beta()
    return torch.sparse_csr_tensor(row_ptr, index_n, value_n, shape, check_invariants=False)


@cache
def _hear_that_it_is_beta() -> None:
    """Filters of warnings belong to all threads, so they are touched once, not at every product."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        torch.sparse_csr_tensor([0, 0], [], torch.empty(0, device="cpu"), (1, 1), check_invariants=False, device="cpu")
