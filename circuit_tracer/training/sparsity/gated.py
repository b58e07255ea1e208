"""Gated: one path says which features are active, another how much (Rajamanoharan et al., arXiv 2404.16014).

Both read through the same rows, those of magnitudes scaled: pre-activations are gates, and a magnitude is
e^r (pre - b_enc) + b_mag.
A gate is a step, so nothing tells it from the main loss when to open: it has a loss of its own (§5), in which open gates
reconstruct through decoders that do not move, and the penalty counts gates, not activations, so that nothing shrinks.

Letters: S source layers, B tokens, F features of a layer (f: owned by this rank), D width, n entries of one source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from circuit_tracer.kernels.decode import value_sums
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.base import Dense, Now, Through
from circuit_tracer.training.sparsity.penalty import BiasRule
from circuit_tracer.training.sparsity.selection import Selection, above
from circuit_tracer.training.step.dictionary import Dictionary


class Gated(BiasRule):
    """a = [pre > 0] max(e^r (pre - b_enc) + b_mag, 0)."""

    gated = True
    own: ClassVar[Mapping[str, float]] = {"log_scale": 0.0, "b_mag": 0.0}

    def activate(self, given: Dense) -> list[Tensor]:
        """The definition."""
        return [
            torch.relu(own["log_scale"].exp() * (p - own["b_enc"]) + own["b_mag"]) * (p > 0)
            for p, own in zip(given.pre, given.own, strict=True)
        ]

    def select(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], now: Now, ranks: FeatureRanks) -> Selection:
        """Entries whose gate is open; those without a magnitude are not active."""
        zeros = [torch.zeros_like(bias) for bias in dictionary.b_enc]
        entries = above(dictionary, x_SBD, zeros, None, ranks, now.rooms, now.questions)
        values = [torch.relu(_magnitudes(dictionary, source, one)) for source, one in enumerate(entries)]
        return Selection(entries, [value_n > 0 for value_n in values], values=values)

    def through(
        self,
        dictionary: Dictionary,
        source: int,
        selection: Selection,
        x_BD: Tensor,
        da_n: Tensor,
        direct_n: Tensor | None,
        ranks: FeatureRanks,
    ) -> Through:
        """The main loss goes to magnitudes alone, ``direct_n`` to gates alone; rows are of both."""
        assert direct_n is not None
        entries, own = selection.entries[source], dictionary.own(source)
        dmag_n = torch.where(selection.active[source], da_n, 0)
        scale_n = own["log_scale"].exp().to(da_n.dtype)[entries.feature]
        from_gate_n = entries.value - own["b_enc"].to(da_n.dtype)[entries.feature]
        return Through(
            dmag_n * scale_n + direct_n,
            direct_n,
            own={
                "log_scale": value_sums(entries.with_value(dmag_n * scale_n * from_gate_n)),
                "b_mag": value_sums(entries.with_value(dmag_n)),
            },
        )

    def penalised(self, selection: Selection, source: int) -> SparseActivations:
        """Open gates, by how far."""
        return selection.entries[source]

    def penalty(self, strength_n: Tensor) -> tuple[Tensor, Tensor]:
        """As far as each is open."""
        return strength_n, torch.ones_like(strength_n)

    def export_encoder(self, weight_FD: Tensor, own: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Those of magnitudes."""
        return weight_FD * own["log_scale"].exp()[:, None].to(weight_FD.dtype), own["b_mag"]

    def export_thresholds(
        self, norm_F: Tensor, n_targets: int, own: Mapping[str, Tensor], level: float | None
    ) -> Tensor:
        """A gate is open where its magnitude is above b_mag - e^r b_enc: a JumpReLU, exactly."""
        return torch.relu(own["b_mag"] - own["log_scale"].exp() * own["b_enc"]).float()


def _magnitudes(dictionary: Dictionary, source: int, entries: SparseActivations) -> Tensor:
    """(n,), of any sign."""
    scale_n, gate_n, bias_n = (
        dictionary.own(source)[name].to(entries.value.dtype)[entries.feature]
        for name in ("log_scale", "b_enc", "b_mag")
    )
    return scale_n.exp() * (entries.value - gate_n) + bias_n
