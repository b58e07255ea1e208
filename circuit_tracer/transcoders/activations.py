"""Sparse activation functions: ReLU, JumpReLU, TopK.

Each works on dense pre-activations (features in the last dimension) and, through a *selector*, on blocks of features
that arrive one after another, so that a layer's P x F pre-activations never exist at once. In all three, an active
feature's value is its pre-activation; an activation of exactly zero is not active.
Letters: P positions, B features of a block, F features a layer, k features kept a position.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.transcoders.frozen import FrozenModule

Selected = tuple[Tensor, Tensor, Tensor]


class Selector(Protocol):
    """Receives the blocks of one layer in ascending order of features and says which entries are active."""

    def add(self, pre_PB: Tensor, start: int) -> None:
        """Take the pre-activations of features ``start`` ... ``start + B - 1``."""

    def finish(self) -> Selected:
        """(position, index, value), each (n,), sorted by (position, index); indices int64."""


class Activation(FrozenModule):
    """Base of the activation functions; calling one maps (..., F) pre-activations to (..., F) activations."""

    name: str

    @abstractmethod
    def selector(self) -> Selector:
        """A fresh selector for one layer's blocks."""


class ReLU(Activation):
    """a = max(pre, 0)."""

    name = "relu"

    def forward(self, pre: Tensor) -> Tensor:
        return torch.relu(pre)

    def selector(self) -> Selector:
        return _ThresholdSelector(None)


class JumpReLU(Activation):
    """a = pre * [pre > threshold], strict and without a shift (arXiv 2407.14435; method of circuit-tracer).

    ``threshold`` is (F,), a scalar, or broadcastable to the pre-activations: (L, 1, F) for the layers of a CLT.
    ``bandwidth`` is the width of the straight-through estimator that trained it; it does not change the values.
    Thresholds are kept in float32 or wider, whatever the weights are converted to: rounding them would switch features whose
    pre-activation lies nearby. Comparison is done in the wider dtype of both.
    """

    name = "jump_relu"
    threshold: Tensor

    def __init__(self, threshold: Tensor | float, bandwidth: float = 2.0) -> None:
        super().__init__()
        given = torch.as_tensor(threshold)
        self.set_frozen("threshold", given.to(torch.promote_types(given.dtype, torch.float32)))
        self.bandwidth = bandwidth

    def forward(self, pre: Tensor) -> Tensor:
        return pre * exceeds(pre, self.threshold)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> JumpReLU:
        """Follow `.to` to another device, and to a wider dtype only."""
        before = self.threshold.detach()  # module.to() replaces the data of the parameter itself
        super()._apply(fn, recurse)
        if self.threshold.dtype != torch.promote_types(self.threshold.dtype, torch.float32):
            self.set_frozen("threshold", before.to(self.threshold.device))
        return self

    def selector(self) -> Selector:
        return _ThresholdSelector(self.threshold)

    def layer(self, layer: int) -> JumpReLU:
        """The activation of one layer of a stacked (L, 1, F) threshold; itself when all layers share it."""
        if self.threshold.ndim < 3:
            return self
        return JumpReLU(self.threshold[layer, 0], self.bandwidth)

    def extra_repr(self) -> str:
        return f"threshold={tuple(self.threshold.shape)}, bandwidth={self.bandwidth}"


class TopK(Activation):
    """Keeps the k largest pre-activations of a row, negative ones included; of equal ones those of lowest index.

    circuit-tracer applies no ReLU; EleutherAI's sparsify does, before choosing: ``nonnegative=True``.
    With k >= F everything is kept. Raises InputError unless k is a positive integer.
    """

    name = "topk"

    def __init__(self, k: int, nonnegative: bool = False) -> None:
        super().__init__()
        if int(k) != k or k < 1:
            raise InputError(f"TopK: k must be a positive integer, found {k}.")
        self.k = int(k)
        self.nonnegative = nonnegative

    def forward(self, pre: Tensor) -> Tensor:
        if self.nonnegative:
            pre = torch.relu(pre)
        return pre * topk_mask(pre, self.k)

    def selector(self) -> Selector:
        return _TopKSelector(self.k, self.nonnegative)

    def extra_repr(self) -> str:
        return f"k={self.k}, nonnegative={self.nonnegative}"


def as_activation(function: object) -> Activation:
    """An Activation as it is, torch's relu functions and "relu" as `ReLU`; InputError for anything else."""
    if isinstance(function, Activation):
        return function
    if function in ("relu", torch.relu, torch.nn.functional.relu) or isinstance(function, torch.nn.ReLU):
        return ReLU()
    raise InputError(
        f"activation function {function!r} is unknown: use ReLU(), JumpReLU(threshold) or TopK(k) "
        "of circuit_tracer.transcoders."
    )


def exceeds(pre: Tensor, threshold: Tensor) -> Tensor:
    """pre > threshold, compared in the wider dtype of both (torch would round a single threshold to the dtype of ``pre``)."""
    dtype = torch.promote_types(pre.dtype, threshold.dtype)
    return pre.to(dtype) > threshold.to(device=pre.device, dtype=dtype)


def topk_mask(pre: Tensor, k: int) -> Tensor:
    """Mask (..., F) of the k largest entries of each row; exactly min(k, F) are set, ties go to the lowest index.

    A rule for ties is what makes the result independent of how features are cut into blocks.
    """
    if k >= pre.shape[-1]:
        return torch.ones_like(pre, dtype=torch.bool)
    least = pre.topk(k, dim=-1).values[..., -1:]
    above = pre > least
    equal = pre == least
    room = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


class _ThresholdSelector:
    """ReLU and JumpReLU: each entry decides for itself."""

    def __init__(self, threshold: Tensor | None) -> None:
        self._threshold = threshold
        self._blocks: list[Selected] = []

    def add(self, pre_PB: Tensor, start: int) -> None:
        if self._threshold is None:
            active = pre_PB > 0
        else:
            threshold = self._threshold
            if threshold.ndim:
                threshold = threshold[start : start + pre_PB.shape[-1]]
            active = exceeds(pre_PB, threshold) & (pre_PB != 0)
        position, index = active.nonzero(as_tuple=True)
        self._blocks.append((position, index + start, pre_PB[position, index]))

    def finish(self) -> Selected:
        if len(self._blocks) == 1:
            return self._blocks[0]
        position, index, value = (torch.cat([block[column] for block in self._blocks]) for column in range(3))
        # Blocks come in ascending order of features: a stable sort by position alone gives (position, index).
        position, order = position.sort(stable=True)
        return position, index[order], value[order]


class _TopKSelector:
    """TopK: the best of all blocks so far compete with the block that arrives."""

    def __init__(self, k: int, nonnegative: bool) -> None:
        self._k = k
        self._nonnegative = nonnegative
        self._best: tuple[Tensor, Tensor] | None = None

    def add(self, pre_PB: Tensor, start: int) -> None:
        index_PB = torch.arange(start, start + pre_PB.shape[-1], device=pre_PB.device).expand_as(pre_PB)
        if self._best is not None:
            pre_PB = torch.cat((self._best[0], pre_PB), dim=-1)
            index_PB = torch.cat((self._best[1], index_PB), dim=-1)
        mask = topk_mask(pre_PB, self._k)
        shape = (pre_PB.shape[0], min(self._k, pre_PB.shape[-1]))
        self._best = (pre_PB[mask].view(shape), index_PB[mask].view(shape))

    def finish(self) -> Selected:
        if self._best is None:
            raise InputError("TopK: no features were given.")
        value_Pk, index_Pk = self._best
        # ReLU before the choice equals dropping what is not positive after it.
        active = value_Pk > 0 if self._nonnegative else value_Pk != 0
        position, slot = active.nonzero(as_tuple=True)
        return position, index_Pk[position, slot], value_Pk[position, slot]
