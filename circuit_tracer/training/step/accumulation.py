"""Gradients of a batch in parts: summed until the last part, whose gradients are handed on with all others (README.md §8)."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.step import Sink


class Accumulated:
    """A sink between the step and ``sink``, which sees one gradient for each ``parts``: their mean.

    The loss is a mean over tokens, so that for parts of equal size this is the gradient of the whole batch.
    Memory: the parameters once more, in float32 (float64 for a float64 dictionary).
    """

    def __init__(self, sink: Sink, dictionary: Dictionary, parts: int) -> None:
        self.sink, self.parts, self.part = sink, parts, 0
        self.sums = {
            name: torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            for name, weight in dictionary.tensors().items()
        }

    def begin(self, part: int) -> None:
        """Gradients from now on are those of ``part`` (0, 1, ...) of a batch."""
        self.part = part

    def gradient(self, name: str, grad: Tensor) -> None:
        """Take one parameter's."""
        whole = self._added(self.sums[name], grad.view(self.sums[name].shape))
        if whole is not None:
            self.sink.gradient(name, whole)

    def decoder_gradient(self, source: int, rows: slice, grad_nC: Tensor) -> None:
        """Take a block of decoder rows'."""
        whole_nC = self._added(self.sums[f"W_dec.{source}"][rows], grad_nC)
        if whole_nC is not None:
            self.sink.decoder_gradient(source, rows, whole_nC)

    def _added(self, total: Tensor, grad: Tensor) -> Tensor | None:
        """The mean, if it is complete. ``grad`` lies in memory that is used again."""
        if self.part == 0:
            total.copy_(grad)
        else:
            total.add_(grad)
        return total.div_(self.parts) if self.part == self.parts - 1 else None
