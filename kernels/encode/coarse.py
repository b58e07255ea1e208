"""Encoder weights in bfloat16, so made that a product with them is never below the true one (README.md, "Scan").

Letters: B tokens, D width, F features, C columns of the coarse product: D, two for the margin, zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from circuit_tracer.kernels.encode.exact import norms

COLUMNS = 32  # C is a multiple of it
ROWS = 256  # that are rounded together: what is made of them on the way stays in a core's second cache
LARGEST = 2.0**120  # what products of norms have to stay below: nothing overflows in float32
TINY = 2.0**-100  # more than all that is lost where products are flushed to zero
HALF = 2.0**-8  # relative error of a rounding to bfloat16, at most


@dataclass(frozen=True)
class Coarse:
    """Of weights (F, D): ``weight_FC`` bfloat16, the width D, and the largest norm of a row."""

    weight_FC: Tensor
    width: int
    largest: float

    @classmethod
    def of(cls, weight_FD: Tensor, norm_F: Tensor) -> Coarse:
        """norm_F: of the rows."""
        weight_FD = weight_FD.detach()
        width = weight_FD.shape[1]
        coarse_FC, lost_F = _coarse(weight_FD)
        new = cls(coarse_FC, width, float(norm_F.max()))
        coarse_FC[:, width] = _rounded_up((1 + HALF) * lost_F + 1.04 * new.accumulated * norm_F, width)
        coarse_FC[:, width + 1] = _rounded_up(norm_F, width)
        return new

    def bounds(self, largest: float) -> bool:
        """Whether nothing overflows in products with inputs of such norms."""
        return largest * max(1.0, self.largest) < LARGEST  # not for NaN

    def tokens(self, x_BD: Tensor, norm_B: Tensor) -> Tensor:
        """What the weights are multiplied with, (B, C)."""
        coarse_BC, lost_B = _coarse(x_BD.detach())
        coarse_BC[:, self.width] = _rounded_up(norm_B, self.width)
        coarse_BC[:, self.width + 1] = _rounded_up(lost_B, self.width)
        return coarse_BC

    def margin(self, tokens_BC: Tensor) -> Tensor:
        """(B,) the most that a product is above the true one, but for its own roundings."""
        columns = slice(self.width, self.width + 2)
        return 2.08 * (tokens_BC[:, columns].float() @ self.weight_FC[:, columns].amax(0).float())

    @property
    def accumulated(self) -> float:
        """How much of the sum of magnitudes is lost in a float32 sum of C terms and what is added to it, rounded in any way."""
        return (self.weight_FC.shape[1] + 4) * 2.0**-23


def _coarse(rows_nD: Tensor) -> tuple[Tensor, Tensor]:
    """Rows rounded to bfloat16, (n, C), zero after D; norms (n,) of what is lost by that."""
    n_rows, width = rows_nD.shape
    coarse_nC = rows_nD.new_empty(n_rows, -(-(width + 2) // COLUMNS) * COLUMNS, dtype=torch.bfloat16)
    coarse_nC[:, width:] = 0
    lost = []
    for some_mD, coarse_mC in zip(rows_nD.split(ROWS), coarse_nC.split(ROWS), strict=True):
        rounded_mD = coarse_mC[:, :width].copy_(some_mD)
        lost.append(norms(rounded_mD.float().sub_(some_mD)))
    return coarse_nC, torch.cat(lost)


def _rounded_up(norm: Tensor, width: int) -> Tensor:
    """bfloat16 not below a norm of ``width`` numbers, whatever underflowed when it was computed or will in the product."""
    rounded: Tensor = (norm * (1 + 2**-7 + 2**-9) + width**0.5 * 2.0**-60).bfloat16()
    return rounded


@lru_cache(maxsize=1)
def has_bfloat16_products() -> bool:
    """Whether this CPU has instructions for them. Not measured: a machine that is busy for a moment would take the other way,
    and values would differ in their last bits from one process to the next."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name))
