"""Averages of weights over the last steps (training/README.md §8)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from circuit_tracer.training.step.dictionary import Dictionary

BLOCK = 2**22  # numbers in hand, so that no whole tensor is copied to a wider format


class Averages:
    """Exponential averages of all parameters of ``dictionary``, float32 or wider, rows as it has them.

    After step t (1, 2, ...) the average moves to the weights by the share max(1/t, 1/window): the plain mean of the first
    ``window`` steps, and from then on one in which a step counts less by 1 - 1/window with each later one.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary, self.weights = dictionary, dictionary.tensors()
        self.tensors = {
            name: weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            for name, weight in self.weights.items()
        }

    def update(self, step: int, window: float) -> None:
        """Take the weights after ``step`` steps (of those that were taken)."""
        share = max(1 / step, 1 / max(1.0, window))
        for name, weight in self.weights.items():
            for average, now in zip(
                self.tensors[name].view(-1).split(BLOCK), weight.view(-1).split(BLOCK), strict=True
            ):
                average.lerp_(now.to(average.dtype), share)

    def averaged(self) -> Dictionary:
        """The dictionary of the averages; it shares their memory."""
        lists: dict[str, Any] = {}
        for name, tensor in self.tensors.items():
            base, _, source = name.partition(".")
            if source:
                lists.setdefault(base, []).append(tensor)
            else:
                lists[base] = tensor
        return replace(self.dictionary, **lists, norms=[])
