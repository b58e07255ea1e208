"""What gates learn from: open ones reconstruct by themselves, through decoders that do not move (training/README.md §5).

Letters: S source layers, B tokens, D width, C = S * D, n entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.kernels.decode import value_gradients
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.selection import Selection
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.outputs import predict
from circuit_tracer.training.step.scratch import Scratch


@dataclass(frozen=True)
class Gates:
    """The loss of a batch (0-d), and its gradient by what gates write, (B, C)."""

    loss: Tensor
    grad_BC: Tensor

    def gradient(self, dictionary: Dictionary, source: int, selection: Selection) -> Tensor:
        """dL/dpre (n,) of one source's entries, all of which are open gates; decoders and biases have none."""
        grad_BC = self.grad_BC[:, dictionary.columns(source)]
        return value_gradients(grad_BC, selection.entries[source], dictionary.W_dec[source])


def open_gates(
    dictionary: Dictionary,
    x_SBD: Sequence[Tensor],
    y_BSD: Tensor,
    selection: Selection,
    ranks: FeatureRanks,
    scratch: Scratch,
) -> Gates:
    """1/S sum_t 1/(B D) sum_b |y^(gates) - y|^2."""
    error_BSD = predict(dictionary, x_SBD, selection.entries, ranks, scratch, "gates").sub_(y_BSD)
    loss = torch.linalg.vector_norm(error_BSD).square() / error_BSD.numel()  # the norm makes no array of squares
    return Gates(loss, error_BSD.mul_(2 / error_BSD.numel()).flatten(1))
