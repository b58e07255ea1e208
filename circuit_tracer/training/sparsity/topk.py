"""TopK: the k largest pre-activations of each token and layer are active."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.base import Dense, Now
from circuit_tracer.training.sparsity.budget import BudgetRule
from circuit_tracer.training.sparsity.ranking import keep_largest, top_k, top_k_at_most
from circuit_tracer.training.sparsity.selection import Selection, all_active, searched
from circuit_tracer.training.step.dictionary import Dictionary


class TopK(BudgetRule):
    """a = pre where pre is positive and among the k largest of its token and layer, or equal to the last of these."""

    def activate(self, given: Dense) -> list[Tensor]:
        """The definition."""
        return [p * keep_largest(p, p > 0, round(given.active)) for p in given.pre]

    def select(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], now: Now, ranks: FeatureRanks) -> Selection:
        """Each source on its own."""
        k = round(now.active)
        if not on_gpu(x_SBD[0]) or k == 0:
            weights = zip(x_SBD, dictionary.W_enc, dictionary.b_enc, strict=True)
            return all_active([top_k(x_BD, W, b, k, ranks) for x_BD, W, b in weights])

        def search(sizes: Sequence[int]) -> tuple[list[SparseActivations], list[Tensor]]:
            weights = zip(x_SBD, dictionary.W_enc, dictionary.b_enc, sizes, strict=True)
            found = [top_k_at_most(x_BD, W, b, k, size, ranks) for x_BD, W, b, size in weights]
            return [entries for entries, _ in found], [count for _, count in found]

        return all_active(searched(search, dictionary, x_SBD, ranks, now.rooms, now.questions))

    @property
    def export_k(self) -> int:
        """k as it is."""
        return round(self.settings.active)

    def export_thresholds(self, norm_F: Tensor, n_targets: int, own: Mapping[str, Tensor], level: float | None) -> None:
        """None: one number for all tokens would be another rule."""

    def contradictions(self, n_features: int) -> Iterator[str]:
        """k is a whole number too."""
        yield from super().contradictions(n_features)
        active = self.settings.active
        if not active.is_integer():
            yield (
                f"sparsity.active is {active} with activation {self.settings.activation}, which keeps a whole number of a "
                f"token's features; "
                f"use {max(1, round(active))}"
            )
