"""Pre-activations of single entries, which depend on their token and feature alone (README.md, "What decides").

Letters: B tokens, D width, F features, n entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

PIECE_BYTES = 2**18  # of products in float64 in hand
TINY = 2.0**-110  # more than what underflows in a float32 sum
OWN_ROUNDING = 2.0**-22  # of a number, more than its rounding to float32
COLUMNS_SUMMED = 4096  # of a dot product at a time: with more, the library may share one among threads, and sums differ


def norms(rows: Tensor) -> Tensor:
    """Norms of rows, float32."""
    norm: Tensor = torch.linalg.vector_norm(rows.detach(), dim=1, dtype=torch.float32)
    return norm


def places(mask: Tensor) -> Tensor:
    """(n,) int64: where a mask holds, in the flattened array, ascending.

    numpy's search steps over words in which it holds nowhere; torch's takes three times as long.
    """
    if mask.device.type != "cpu":
        return mask.flatten().nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def divided(place: Tensor, n_columns: int) -> tuple[Tensor, Tensor]:
    """(column, row) of places in a flattened array."""
    if place.device.type != "cpu":
        row = torch.div(place, n_columns, rounding_mode="floor")
    else:
        row = torch.from_numpy(place.numpy() // n_columns)  # by multiplications, where torch divides
    return place - row * n_columns, row


def bounding(norm: Tensor) -> Tensor:
    """Norms to multiply for a bound; NaN, within which nothing is, where sums lose nothing (zero) or anything (infinite)."""
    return norm * norm / norm


@dataclass(frozen=True)
class Cuts:
    """Of each feature: its cut, the norm of its weights (`bounding`), and what may be lost besides their product with x."""

    cut_F: Tensor
    norm_F: Tensor
    besides_F: Tensor

    @classmethod
    def of(cls, cut_F: Tensor, bias_F: Tensor, norm_F: Tensor, width: int) -> Cuts:
        """All float32; width: D."""
        cut_F = cut_F.detach()
        besides_F = lost(width) * bias_F.detach().float().abs() + OWN_ROUNDING * cut_F.abs() + TINY
        return cls(cut_F, bounding(norm_F), besides_F)

    def undecided(self, most: float) -> Tensor:
        """(F,): how far from its cut a pre-activation may be decided otherwise, most: `Rows.losing_most`."""
        return torch.add(self.besides_F, self._losing_F, alpha=most)

    @cached_property
    def _losing_F(self) -> Tensor:
        return self.norm_F.nan_to_num(0)


def lost(width: int) -> float:
    """How much of |x| |w| a float32 sum of so many products and a bias may lose, in any order, and a little more."""
    return 1.02 * (width + 8) * 2.0**-24


@dataclass(frozen=True)
class Rows:
    """Inputs and weights whose entries are asked for: x_BD float32, weight_FD of any floating dtype, bias_F."""

    x_BD: Tensor
    weight_FD: Tensor
    bias_F: Tensor
    norm_F: Tensor  # of the weights
    norm_B: Tensor  # of the inputs

    def block(self, rows: slice) -> Rows:
        """Of some inputs."""
        return replace(self, x_BD=self.x_BD[rows], norm_B=self.norm_B[rows])

    @cached_property
    def largest(self) -> float:
        """The largest norm of an input; NaN if one is."""
        return float(self.norm_B.max())

    @property
    def losing_most(self) -> float:
        """The most that any input's product may lose, if it has a bound, times the norm of weights."""
        largest = self.largest if math.isfinite(self.largest) else float(self.norm_B.nan_to_num(0).max())
        return lost(self.x_BD.shape[1]) * largest

    @cached_property
    def losing_B(self) -> Tensor:
        """What, times the norm of weights, a product with them may lose."""
        return lost(self.x_BD.shape[1]) * bounding(self.norm_B)

    def settled(self, row: Tensor, feature: Tensor, cuts: Cuts, undecided_F: Tensor, value: Tensor) -> Tensor:
        """The places of entries that are above their cuts, of float32 pre-activations (n,).

        Of these, in their place, becomes true what is true of exact ones, rounded to float32: that they are above their cuts,
        at them, or below. undecided_F: `Cuts.undecided` of these inputs. In numpy, whose small operations cost a third.
        """
        rows, features, values = row.numpy(), feature.numpy(), value.numpy()
        cut_n = cuts.cut_F.numpy().take(features)
        off = np.abs(values - cut_n)
        near = np.flatnonzero(off <= undecided_F.numpy().take(features))  # of which not all lose so much
        if near.size:
            row_n, feature_n = rows[near], features[near]
            loss = cuts.norm_F.numpy()[feature_n] * self.losing_B.numpy()[row_n] + cuts.besides_F.numpy()[feature_n]
            near = near[off[near] <= loss]
            values[near] = self.rounded(rows[near], features[near])
        return torch.from_numpy(np.flatnonzero(values > cut_n))

    def pre_activations(self, row: Tensor, feature: Tensor) -> Tensor:
        """x · w + b (n,) in float32, each by the same sums wherever it stands. Sorted by feature they are faster."""
        x_BD, weight_FD, parts = self.x_BD.detach(), self.weight_FD.detach().float(), []
        for at in range(0, x_BD.shape[1], COLUMNS_SUMMED):
            columns = slice(at, at + COLUMNS_SUMMED)
            # the gradient of weights of a bag's members: one dot product of two rows for each, a library's
            dots = torch.ops.aten._embedding_bag_per_sample_weights_backward
            parts.append(dots(x_BD[:, columns], weight_FD[:, columns], feature, row, row, 0))
        return sum(parts, self.bias_F.detach().float().index_select(0, feature))

    def rounded(self, row: np.ndarray, feature: np.ndarray) -> np.ndarray:
        """x · w + b (n,), summed in float64 from the first product to the last, rounded to float32.

        A running sum has one order, whatever the number of rows or threads.
        """
        sums, piece = np.empty(row.shape[0]), max(1, PIECE_BYTES // (8 * self.x_BD.shape[1]))
        x_BD, weight_FD = self.x_BD.detach().numpy(), self.weight_FD.detach()
        for at in range(0, row.shape[0], piece):
            some = slice(at, at + piece)
            weight_nD = weight_FD.index_select(0, torch.from_numpy(feature[some])).double().numpy()
            products = np.multiply(x_BD[row[some]], weight_nD, out=weight_nD)
            sums[some] = np.add.accumulate(products, axis=1, out=products)[:, -1]
        rounded: np.ndarray = (sums + self.bias_F.detach().numpy()[feature]).astype(np.float32)
        return rounded
