"""Specification of `encode` and `encode_top_k`: one dot product per (token, feature), and only what is asked for is kept."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from circuit_tracer.kernels.sparse_activations import SparseActivations


def encode(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, cut_F: Tensor) -> SparseActivations:
    """The entries with pre > cut, where pre = <x[b], weight[f]> + bias[f] is also their value.

    The comparison is strict. A NaN is above no cut, so it makes no entry. Shapes as in `circuit_tracer.kernels.encode.encode`.
    """
    kept = [
        [(f, pre) for f, pre in enumerate(_pre_activations(x_D, weight_FD, bias_F)) if pre > cut_F[f]] for x_D in x_BD
    ]
    return _rows(kept, x_BD, weight_FD)


def encode_top_k(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, k: int) -> SparseActivations:
    """Of each token the k largest positive pre-activations, and those that equal the last of them; NaN is none of them."""
    kept = []
    for x_D in x_BD:
        positive = [(f, pre) for f, pre in enumerate(_pre_activations(x_D, weight_FD, bias_F)) if pre > 0]
        last = sorted((pre for _, pre in positive), reverse=True)[:k][-1:]
        kept.append([(f, pre) for f, pre in positive if last and pre >= last[0]])
    return _rows(kept, x_BD, weight_FD)


def _pre_activations(x_D: Tensor, weight_FD: Tensor, bias_F: Tensor) -> list[Tensor]:
    return [x_D @ weight_FD[f] + bias_F[f] for f in range(weight_FD.shape[0])]


def _rows(kept: list[list[tuple[int, Tensor]]], x_BD: Tensor, weight_FD: Tensor) -> SparseActivations:
    """Of the (feature, value) of each token."""
    value = [pre for entries in kept for _, pre in entries]
    return SparseActivations(
        row_ptr=torch.tensor([0, *accumulate(len(entries) for entries in kept)]),
        feature=torch.tensor([f for entries in kept for f, _ in entries], dtype=torch.int64),
        value=torch.stack(value) if value else x_BD.new_zeros(0),
        n_features=weight_FD.shape[0],
    )
