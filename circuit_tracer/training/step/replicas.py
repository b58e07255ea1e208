"""Gradients of groups that see different tokens of a batch, made one: each block's is averaged before anything is updated."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.step.step import Sink


@dataclass(frozen=True)
class MeanGradients:
    """A sink (`step.Sink`) in front of another. Every term of the loss is a mean over tokens (training/README.md §5), so the
    whole batch's gradient is the mean of those of its shares, which are equally large.
    """

    sink: Sink
    ranks: FeatureRanks

    def gradient(self, name: str, grad: Tensor) -> None:
        """Hand on the mean."""
        self.sink.gradient(name, self.ranks.mean_(grad))

    def decoder_gradient(self, source: int, rows: slice, grad_nC: Tensor) -> None:
        """Hand on the mean."""
        self.sink.decoder_gradient(source, rows, self.ranks.mean_(grad_nC))
