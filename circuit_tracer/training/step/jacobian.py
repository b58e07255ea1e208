"""Jacobian matching: the active features answer a small step of the input as the true MLP does (training/README.md §5).

Letters: S source layers, B tokens, f features of a layer owned by this rank, D width, n entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from circuit_tracer.kernels.decode import decode_, value_gradients, weight_gradients
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.selection import Selection
from circuit_tracer.training.step.dictionary import Dictionary


@dataclass(frozen=True)
class Matched:
    """The loss of a batch, and what its gradients need."""

    loss: Tensor  # 0-d
    entries: list[SparseActivations]  # active ones; the value is c = <W_enc row, v'>
    direction_SBD: Sequence[Tensor]
    grad_SBD: list[Tensor]  # of the answers j^

    def add(
        self,
        dictionary: Dictionary,
        source: int,
        encoder_fD: Tensor,
        decoder: list[tuple[SparseActivations, Tensor, slice]],
    ) -> None:
        """Add one source's gradients: c times the own-layer block of its decoder row, and v' to its encoder row."""
        own = slice(0, dictionary.d_model)
        entries, grad_BD = self.entries[source], self.grad_SBD[source]
        dc_n = value_gradients(grad_BD, entries, dictionary.W_dec[source][:, own])
        encoder_fD += weight_gradients(self.direction_SBD[source], entries.with_value(dc_n), 0, entries.n_features)
        decoder.append((entries, grad_BD, own))


def match(
    dictionary: Dictionary,
    selection: Selection,
    direction_SBD: Sequence[Tensor],
    derivative_SBD: Sequence[Tensor],
    scale_S: Tensor,
    weight: float,
    ranks: FeatureRanks,
) -> Matched:
    """beta / S sum_s 1/B sum_b |j^ - u'|^2 / U_s with the active set held. scale_S: U_s."""
    n_rows, n_layers, width = direction_SBD[0].shape[0], dictionary.n_layers, dictionary.d_model
    answer_BSD = direction_SBD[0].new_zeros(n_rows, n_layers, width)
    entries = []
    for source, v_BD in enumerate(direction_SBD):
        one = selection.entries[source].keep(selection.active[source])
        one = one.with_value(value_gradients(v_BD, one, dictionary.W_enc[source]))
        decode_(answer_BSD[:, source], one, dictionary.W_dec[source][:, :width])
        entries.append(one)
    ranks.all_reduce_(answer_BSD)
    loss, grads = answer_BSD.new_zeros(()), []
    for source, (v_BD, u_BD) in enumerate(zip(direction_SBD, derivative_SBD, strict=True)):
        error_BD = answer_BSD[:, source] - u_BD
        if dictionary.W_skip is not None:
            error_BD += v_BD @ dictionary.W_skip[source].T
        share = weight / (n_layers * n_rows * scale_S[source].to(error_BD.dtype))
        loss = loss + share * error_BD.square().sum()
        grads.append(error_BD.mul_(2 * share))
    return Matched(loss, entries, direction_SBD, grads)
