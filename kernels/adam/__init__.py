"""One step of Adam on rows of a parameter, with their norms (derivation and costs: README.md).

CUDA tensors take the Triton kernel (triton.py), one launch however many rows; all others torch.

Letters: R rows, C columns, K blocks of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from circuit_tracer.kernels.adam import packed
from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.random_bits import round_stochastically


@dataclass(frozen=True)
class Rows:
    """Rows of a parameter and what belongs to them; an update changes all of it in place.

    Attributes:
        weight: (R, C) float32, float64, or bfloat16, which is rounded stochastically.
        first: Moments (R, C), in the format of the arithmetic (float32; float64 for float64), in bfloat16, or packed into
            uint8 with exponents (R, K) (`packed.py`); the last two are rounded stochastically too.
        second: Moments (R, C), in the format of the arithmetic (float32; float64 for float64), in bfloat16, or packed into
            uint8 with exponents (R, K) (`packed.py`); the last two are rounded stochastically too.
        norm: (R,) norms of the rows, if they are wanted.
    """

    weight: Tensor
    first: Tensor
    second: Tensor
    first_exponent: Tensor | None = None
    second_exponent: Tensor | None = None
    norm: Tensor | None = None


@dataclass(frozen=True)
class Update:
    """Numbers of one step. All are launched with, none is read from the device."""

    step: int  # updates before this one
    rate: float
    beta1: float
    beta2: float
    eps: float
    # place of the first number of the rows, and hashes that key the random bits of weights and of the two moments
    place: int = 0
    keys: tuple[int, int, int] = (0, 0, 0)

    @property
    def correction1(self) -> float:
        """What the first moment is short of."""
        return 1 - self.beta1 ** (self.step + 1)

    @property
    def correction2(self) -> float:
        """What the second moment is short of."""
        return 1 - self.beta2 ** (self.step + 1)


def adam_(rows: Rows, grad_RC: Tensor, update: Update) -> None:
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w -= rate / c1 * m / (sqrt(v / c2) + eps), and the norms of w.

    On CUDA that is float32.

    Args:
        rows: What is updated, in place.
        grad_RC: (R, C) in the format of the arithmetic.
        update: The step's numbers.
    """
    if on_gpu(grad_RC):
        from circuit_tracer.kernels.adam import triton

        return triton.adam_(rows, grad_RC, update)
    weight = rows.weight.float() if rows.weight.dtype is torch.bfloat16 else rows.weight
    first = _wide(rows.first, rows.first_exponent, packed.FIRST)
    second = _wide(rows.second, rows.second_exponent, packed.SECOND)
    adam(
        [weight],
        [grad_RC.to(weight.dtype)],
        [first],
        [second],
        [],
        [torch.tensor(float(update.step), device=weight.device)],
        fused=True,
        amsgrad=False,
        beta1=update.beta1,
        beta2=update.beta2,
        lr=update.rate,
        weight_decay=0.0,
        eps=update.eps,
        maximize=False,
    )
    _keep(rows.weight, weight, None, 0, update.place, update.keys[0])
    _keep(rows.first, first, rows.first_exponent, packed.FIRST, update.place, update.keys[1])
    _keep(rows.second, second, rows.second_exponent, packed.SECOND, update.place, update.keys[2])
    if rows.norm is not None:
        rows.norm.copy_(torch.linalg.vector_norm(rows.weight, dim=1, dtype=rows.norm.dtype))
    return None


def _wide(moment: Tensor, exponent: Tensor | None, largest: int) -> Tensor:
    if exponent is not None:
        return packed.unpack(moment, exponent, largest)
    return moment.float() if moment.dtype is torch.bfloat16 else moment


def _keep(kept: Tensor, wide: Tensor, exponent: Tensor | None, largest: int, place: int, key: int) -> None:
    """Write what was computed in a wider format to where it is kept."""
    if exponent is not None:
        code, top = packed.pack(wide, largest, place, key)
        kept.copy_(code)
        exponent.copy_(top)
    elif kept is not wide:
        kept.copy_(round_stochastically(wide, place, key))
