"""Pre-activations of single entries, which depend on their token and feature alone (README.md, "What decides").

Letters: B tokens, D width, F features, n entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from circuit_tracer.kernels.csr import csr
from circuit_tracer.kernels.sparse_activations import pointers

PIECE_BYTES = 2**20  # of products in float64 in hand
TINY = 2.0**-110  # more than what underflows in a float32 sum


@dataclass(frozen=True)
class Rows:
    """Inputs and weights whose entries are asked for: x_BD float32, weight_FD of any floating dtype, bias_F."""

    x_BD: Tensor
    weight_FD: Tensor
    bias_F: Tensor
    norm_F: Tensor  # of the weights' rows

    @cached_property
    def norm_B(self) -> Tensor:
        """Of the inputs."""
        return torch.linalg.vector_norm(self.x_BD, dim=1)

    @cached_property
    def lost(self) -> float:
        """How much of |x| |w| a float32 sum of D products and a bias may lose, in any order, and a little more."""
        return 1.02 * (self.x_BD.shape[1] + 8) * 2.0**-24

    def settled(self, row: Tensor, feature: Tensor, cut_n: Tensor, value: Tensor | None = None) -> Tensor:
        """Values (n,) of entries sorted by row, then feature: value > cut is what is true of the exact one, rounded to float32.

        value: pre-activations in float32; None: they are computed, by the same sums wherever the entry stands.
        """
        if value is None:
            value = self.dots(row, feature) + self.bias_F[feature].float()
        loss = self.loss(row, feature) + 2.0**-22 * cut_n.abs() + TINY
        near = ((value - cut_n).abs_() <= loss).nonzero()[:, 0]
        if near.shape[0]:
            value[near] = self.rounded(row[near], feature[near]).to(value.dtype)
        return value

    def loss(self, row: Tensor, feature: Tensor) -> Tensor:
        """(n,) how far float32 values may be off; minus infinity where there is nothing to lose, or no bound."""
        loss = self.norm_F[feature] * self.norm_B[row]
        bounded = (loss > 0) & (loss < torch.inf)
        return torch.where(bounded, self.lost * (loss + self.bias_F[feature].float().abs()), -torch.inf)

    def dots(self, row: Tensor, feature: Tensor) -> Tensor:
        """x · w (n,) in float32, of entries sorted by row, then feature."""
        shape = (self.x_BD.shape[0], self.weight_FD.shape[0])
        wanted = csr(pointers(row, shape[0]), feature, self.x_BD.new_zeros(row.shape[0]), shape)
        made: Tensor = torch.sparse.sampled_addmm(wanted, self.x_BD, self.weight_FD.float().T).values()
        return made

    def rounded(self, row: Tensor, feature: Tensor) -> Tensor:
        """x · w + b (n,) of float64 sums in one order, rounded to float32."""
        piece = max(1, PIECE_BYTES // (8 * self.x_BD.shape[1]))
        sums = [
            _halved(self.x_BD[rows].double() * self.weight_FD[features].double())
            for rows, features in zip(row.split(piece), feature.split(piece), strict=True)
        ]
        return (torch.cat(sums) + self.bias_F[feature].double()).float()


def _halved(terms_nD: Tensor) -> Tensor:
    """Sums of rows, halves added to halves: elementwise, so that no library and no number of rows or threads changes the order."""
    while (width := terms_nD.shape[1]) > 1:
        half = width // 2
        folded = terms_nD[:, :half] + terms_nD[:, half : 2 * half]
        if width % 2:
            folded[:, 0] += terms_nD[:, -1]
        terms_nD = folded
    return terms_nD[:, 0]
