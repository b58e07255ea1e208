"""BatchTopK: of a batch's tokens and layers together, k a token and layer on average are active; pre * scale ranks them.

The fast way needs no array of all scores: candidates are looked for above the running cut, somewhat lowered. A GPU
is asked once, how many there were and where the cut is.

Letters: S source layers, B tokens, F features of a layer owned by this rank, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.base import Dense, Now
from circuit_tracer.training.sparsity.budget import BudgetRule
from circuit_tracer.training.sparsity.ranking import keep_largest, kth_largest
from circuit_tracer.training.sparsity.selection import Masks, Selection, above, all_active, scores
from circuit_tracer.training.step.dictionary import Dictionary

# Candidates are looked for above the running cut times these, one after the other until there are enough.
LOWERED = (0.95, 0.8, 0.5, 0.0)
SAMPLE_ROWS = 64  # tokens on which a first cut is guessed


class BatchTopK(BudgetRule):
    """a = pre where pre * `scale` is positive and not below the cut, the round(k S B)-th largest of all."""

    candidates = 1.5
    needs_level = True

    def activate(self, given: Dense) -> list[Tensor]:
        """The definition."""
        n_tokens, n_layers = given.pre[0].shape[0], len(given.pre)
        scale = [self.scale(*each) for each in zip(given.norms, given.n_targets, strict=True)]
        score = torch.cat([(p * s).flatten() for p, s in zip(given.pre, scale, strict=True)])
        positive = torch.cat([(p > 0).flatten() for p in given.pre])
        mask = keep_largest(score, positive, round(given.active * n_layers * n_tokens))
        kept = mask.split([p.numel() for p in given.pre])
        return [p * keep.view_as(p) for p, keep in zip(given.pre, kept, strict=True)]

    def select(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], now: Now, ranks: FeatureRanks) -> Selection:
        """All sources together."""
        kept = round(now.active * len(x_SBD) * x_SBD[0].shape[0] * ranks.replicas.world)  # of all tokens
        scale = [self.scale(norm_F, dictionary.reach(source)) for source, norm_F in enumerate(dictionary.norms)]
        start = _guess(dictionary, x_SBD, kept, scale, ranks) if now.running_cut is None else now.running_cut
        cuts = []

        def best(candidates: list[SparseActivations]) -> Masks:
            ranked = [scores(*each) for each in zip(candidates, scale, strict=True)]
            cut = kth_largest(ranked, kept, ranks.plain)
            cuts.append(now.questions.ask("cut", cut))
            return [score >= cut for score in ranked]

        for share in LOWERED:
            level = share * start
            low = [level / scale_F if level else torch.zeros_like(scale_F) for scale_F in scale]
            entries = above(dictionary, x_SBD, low, best, ranks, now.rooms, now.questions)
            # scores right at the lowered cut may be missing for rounding: below it nothing is certain
            if level == 0 or cuts[-1].number > level * (1 + 1e-5):
                break
        return all_active(entries, cuts[-1].number)

    def level(self, norm_n: Tensor, threshold_n: Tensor, n_targets: int, running_cut: float | None) -> Tensor:
        """The running cut, as a multiple of the norm."""
        return torch.full_like(norm_n, (running_cut or 0.0) * self._share(n_targets))

    def scale(self, norm_F: Tensor, n_targets: int) -> Tensor:
        """A feature counts by what it writes: in all, or to a layer."""
        share = self._share(n_targets)
        return norm_F if share == 1 else norm_F / share

    def export_thresholds(
        self, norm_F: Tensor, n_targets: int, own: Mapping[str, Tensor], level: float | None
    ) -> Tensor:
        """The calibrated level, by the scale of each feature."""
        assert level is not None
        scale_F = self.scale(norm_F, n_targets)
        # a feature with scale 0 has score 0 and is never active
        return torch.where(scale_F > 0, level / scale_F, torch.inf).clamp(max=torch.finfo(torch.float32).max).float()

    def _share(self, n_targets: int) -> float:
        return math.sqrt(n_targets) if self.settings.rank_by == "target" else 1.0


def _guess(
    dictionary: Dictionary, x_SBD: Sequence[Tensor], kept: int, scale: Sequence[Tensor], ranks: FeatureRanks
) -> float:
    """A first cut: the one that a few tokens would have."""
    n_rows = x_SBD[0].shape[0]
    sample = [x_BD[:: max(1, n_rows // SAMPLE_ROWS)][:SAMPLE_ROWS] for x_BD in x_SBD]
    entries = above(dictionary, sample, [torch.zeros_like(norm_F) for norm_F in dictionary.norms])
    ranked = [scores(*each) for each in zip(entries, scale, strict=True)]
    return float(kth_largest(ranked, max(1, kept * sample[0].shape[0] // max(1, n_rows)), ranks.plain))
