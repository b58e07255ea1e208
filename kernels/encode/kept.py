"""What is known of encoder weights, and kept between calls: norms of rows, cuts, and a coarse copy.

Letters: D width, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor

from circuit_tracer.kernels.encode.coarse import Coarse, has_bfloat16_products
from circuit_tracer.kernels.encode.exact import Cuts, Rows, norms
from circuit_tracer.kernels.encode.scan import lifted

AT_ONCE = 256  # tokens from which on the scan is faster, its coarse copy included
LEAST_WEIGHTS = 2**16  # with fewer, what is saved is less than what it takes to begin

Made = TypeVar("Made")


class _Once(Generic[Made]):
    """What was made of some tensors, as long as they are asked for again, unchanged."""

    def __init__(self) -> None:
        self._of: tuple[Tensor, ...] = ()  # themselves, so that no others can come to lie where they lie
        self._known: object = None
        self.made: Made | None = None

    def __call__(self, make: Callable[[], Made], *of: Tensor) -> Made:
        if any(tensor.is_inference() for tensor in of):  # torch does not count their changes
            return make()
        known = [(tensor.data_ptr(), tensor._version, tensor.dtype, tensor.shape, tensor.stride()) for tensor in of]
        if self.made is None or known != self._known:
            self.made = None
            self._of, self._known, self.made = of, known, make()
        return self.made


class Weights:
    """Of one matrix: the norms of its rows, and what else is asked for."""

    def __init__(self, weight_FD: Tensor, norm_F: Tensor | None = None) -> None:
        self.weight_FD = weight_FD
        self.norm_F = norms(weight_FD) if norm_F is None else norm_F
        self.largest = float(self.norm_F.max())
        self.coarse: Coarse | None = None
        self._cuts: _Once[tuple[Cuts, Tensor | None]] = _Once()
        self._largest_bias: _Once[float] = _Once()
        self._least_cut: _Once[float] = _Once()

    def rows(self, x_BD: Tensor, bias_F: Tensor) -> Rows:
        """Inputs (B, D), float32, with these weights."""
        return Rows(x_BD.contiguous(), self.weight_FD, bias_F, self.norm_F, norms(x_BD))

    def largest_bias(self, bias_F: Tensor) -> float:
        """The largest magnitude; NaN if one is."""
        return self._largest_bias(lambda: float(bias_F.abs().max()), bias_F)

    def least_cut(self, cut_F: Tensor) -> float:
        """The smallest; NaN if one is."""
        return self._least_cut(lambda: float(cut_F.min()), cut_F)

    @cached_property
    def zero_F(self) -> Tensor:
        """Cuts of nothing."""
        return torch.zeros_like(self.norm_F)

    def make_coarse(self) -> None:
        """Make the coarse copy, where products with it are faster."""
        if self.weight_FD.numel() >= LEAST_WEIGHTS and has_bfloat16_products():
            self.coarse = Coarse.of(self.weight_FD, self.norm_F)

    def cuts(self, cut_F: Tensor, bias_F: Tensor) -> tuple[Cuts, Tensor | None]:
        """Of float32 cuts: what decides, and with a coarse copy, what is added to products with it."""

        def make() -> tuple[Cuts, Tensor | None]:
            needed_F = cut_F.double() - bias_F.double()
            add_F = None if self.coarse is None else lifted(needed_F, self.coarse.accumulated)
            return Cuts.of(cut_F, bias_F, self.norm_F, self.weight_FD.shape[1]), add_F

        return self._cuts(make, cut_F, bias_F)


class Kept:
    """Of one matrix at a time, for as long as it is the same tensor, unchanged: of another, what belongs to that.

    A change in place is seen by torch's count of changes; one behind it, through ``.data`` or numpy, is not: call `drop`. The
    coarse copy takes half of what the weights take in float32. may_copy: whether to keep one.
    """

    def __init__(self, may_copy: bool = True) -> None:
        self._may_copy = may_copy
        self.drop()

    def drop(self) -> None:
        """Forget everything."""
        self._weights: _Once[Weights] = _Once()
        self._scanned: _Once[Weights] = _Once()  # the same with a coarse copy

    @property
    def n_bytes(self) -> int:
        """What the coarse copy takes."""
        weights = self._scanned.made
        return 0 if weights is None or weights.coarse is None else weights.coarse.weight_FC.nbytes

    def of(self, weight_FD: Tensor, n_rows: int) -> Weights:
        """What is known of the weights, with a coarse copy for as many tokens as gain by it: on one machine, the number of
        tokens alone says which way they take."""
        weights = self._weights(lambda: Weights(weight_FD), weight_FD)
        if n_rows < AT_ONCE:
            return weights
        if not self._may_copy:
            return of_one_call(weight_FD, n_rows, weights.norm_F)
        return self._scanned(lambda: of_one_call(weight_FD, n_rows, weights.norm_F), weight_FD)


def of_one_call(weight_FD: Tensor, n_rows: int, norm_F: Tensor | None = None) -> Weights:
    """The same for one call."""
    weights = Weights(weight_FD, norm_F)
    if n_rows >= AT_ONCE:
        weights.make_coarse()
    return weights
