"""Specification of the sparse decoder products: one loop over the entries for each of the three.

An entry (b, f, a) says that feature f is active on token b with value a. Shapes as in `circuit_tracer.kernels.decode`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from circuit_tracer.kernels.sparse_activations import SparseActivations


def decode(out_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> Tensor:
    """out[b] + sum over the entries of token b of a * weight[f], a new tensor."""
    result = out_BC.clone()
    for entry, row, feature in _entries(entries):
        result[row] += entries.value[entry] * weight_FC[feature]
    return result


def value_gradients(grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> Tensor:
    """<grad[b], weight[f]> of every entry, (n,)."""
    result = grad_BC.new_zeros(len(entries.feature))
    for entry, row, feature in _entries(entries):
        result[entry] = torch.dot(grad_BC[row], weight_FC[feature].to(grad_BC.dtype))
    return result


def weight_gradients(grad_BC: Tensor, entries: SparseActivations, start: int, stop: int) -> Tensor:
    """sum over the entries of feature f of a * grad[b], for the features start <= f < stop, (stop - start, C)."""
    result = grad_BC.new_zeros(stop - start, grad_BC.shape[1])
    for entry, row, feature in _entries(entries):
        if start <= feature < stop:
            result[feature - start] += entries.value[entry] * grad_BC[row]
    return result


def _entries(entries: SparseActivations) -> Iterator[tuple[int, int, int]]:
    """(number, token, feature) of every entry."""
    pointers = entries.row_ptr.tolist()
    for row, (first, last) in enumerate(pairwise(pointers)):
        for entry in range(first, last):
            yield entry, row, int(entries.feature[entry])
