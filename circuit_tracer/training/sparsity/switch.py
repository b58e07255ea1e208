"""Switch: a router sends each token to one of N experts, who own equal parts of the features (Mudide et al., 2410.08201).

Only that expert's pre-activations are computed: F features cost what F/N do. Its activations are multiplied with the router's
probability, through which the router learns.

Letters: S source layers, B tokens, F features of a layer owned by this rank, D width, N experts, n entries of one source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.base import Dense, Now, Through
from circuit_tracer.training.sparsity.ranking import keep_largest, top_k
from circuit_tracer.training.sparsity.routing import Route, route
from circuit_tracer.training.sparsity.selection import Selection, all_active
from circuit_tracer.training.sparsity.topk import TopK
from circuit_tracer.training.step.dictionary import Dictionary


class Switch(TopK):
    """a = p pre where pre is positive and among the k largest of the token's expert; p is the router's probability of it."""

    kinds: ClassVar[tuple[str, ...]] = ("sae",)
    nests = False

    @property
    def experts(self) -> int:
        """N."""
        return self.settings.experts

    @property
    def searched(self) -> float:
        """One expert's."""
        return 1 / self.experts

    def activate(self, given: Dense) -> list[Tensor]:
        """The definition."""
        activations = []
        for pre_BF, share_BN in zip(given.pre, given.routed, strict=True):
            expert_B1 = share_BN.argmax(1, keepdim=True)
            own_BF = (
                torch.arange(pre_BF.shape[1], device=pre_BF.device) // (pre_BF.shape[1] // self.experts) == expert_B1
            )
            kept_BF = keep_largest(pre_BF, (pre_BF > 0) & own_BF, round(given.active))
            activations.append(share_BN.gather(1, expert_B1) * pre_BF * kept_BF)
        return activations

    def select(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], now: Now, ranks: FeatureRanks) -> Selection:
        """Each source on its own, expert by expert; a GPU is waited for at each."""
        assert dictionary.W_router is not None
        assert dictionary.b_router is not None
        routes = [route(*each, ranks) for each in zip(x_SBD, dictionary.W_router, dictionary.b_router, strict=True)]
        entries = [
            self._of_experts(dictionary, source, x_BD, routes[source], round(now.active), ranks)
            for source, x_BD in enumerate(x_SBD)
        ]
        values = [one.value * each.chosen_B[one.row] for one, each in zip(entries, routes, strict=True)]
        return Selection(entries, all_active(entries).active, values=values, routes=routes)

    def _of_experts(
        self, dictionary: Dictionary, source: int, x_BD: Tensor, routed: Route, k: int, ranks: FeatureRanks
    ) -> SparseActivations:
        """The k largest of each token among its expert's features."""
        size, owned = dictionary.n_features // self.experts, dictionary.owned
        rows, features, values = [], [], []
        for expert in range(self.experts):
            tokens = (routed.expert_B == expert).nonzero()[:, 0]
            first, last = (
                min(max(end, owned.start), owned.stop) - owned.start for end in (expert * size, (expert + 1) * size)
            )
            weights = dictionary.W_enc[source][first:last], dictionary.b_enc[source][first:last]
            found = top_k(x_BD[tokens], *weights, k, ranks)
            rows.append(tokens[found.row])
            features.append(found.feature + first)
            values.append(found.value)
        row_n, order = torch.cat(rows).sort(stable=True)  # a token has one expert: its features stay in order
        return SparseActivations.from_entries(
            row_n, torch.cat(features)[order], torch.cat(values)[order], len(x_BD), len(dictionary.norms[source])
        )

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
        """Through the probability to the router, which is also told to keep experts equally busy (§5)."""
        assert selection.routes is not None
        entries, routed = selection.entries[source], selection.routes[source]
        dchosen_B = torch.zeros_like(routed.chosen_B).index_add_(0, entries.row, da_n * entries.value)
        _, balance_N = routed.balance(self.settings.balance_weight / dictionary.n_layers)
        grad_BN = balance_N.repeat(len(x_BD), 1)
        grad_BN.scatter_add_(1, routed.expert_B[:, None], ranks.all_reduce_(dchosen_B)[:, None])
        dlogit_BN = routed.through(grad_BN)
        return Through(
            da_n * routed.chosen_B[entries.row],
            shared={"W_router": dlogit_BN.T @ x_BD, "b_router": dlogit_BN.sum(0)},
        )

    def contradictions(self, n_features: int) -> Iterator[str]:
        """An expert has F/N features, of which k are active."""
        if n_features % self.experts:
            yield (
                f"dictionary.features is {n_features}, which sparsity.experts, {self.experts}, cannot share evenly; use "
                f"{max(1, n_features // self.experts) * self.experts}, say"
            )
            return
        yield from super().contradictions(n_features)
        most = max(self.settings.active, self.settings.active_at_start or 0)
        if n_features // self.experts < most <= n_features:
            yield (
                f"{most:g} features of a token are to be active, more than the {n_features // self.experts} of an expert "
                f"(dictionary.features {n_features} / sparsity.experts {self.experts}); lower it, or use fewer experts"
            )
