"""From a rule over a batch to a threshold a feature, as readers of dictionaries know it (training/README.md §9).

Letters: S source layers, B tokens, f features of a layer owned by this rank, n entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit_tracer.kernels.encode import encode
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.selection import kth_largest, select

TOKENS = 8192  # held-out tokens calibrated on, if a batch has not more


def n_batches(batch: int) -> int:
    """How many batches of held-out tokens to calibrate on."""
    return max(1, TOKENS // batch)


# Scores are looked for above the n-th kept times these, until one more than was kept is found.
LOWERED = (0.9, 0.5, 0.1, 0.0)


def level_scores(
    dictionary: Dictionary,
    batches: Sequence[Sequence[Tensor]],
    settings: SparsitySection,
    running_cut: float | None,
    ranks: FeatureRanks,
) -> list[float]:
    """tau_s of every source (topk, batch_topk): above it lie as many scores of ``batches`` as the training rule keeps.

    batches: normalised inputs (B, D) of every source, held out from training. A score is pre * n_f for batch_topk and pre
    for topk. A source of which the rule keeps nothing gets a level above all its scores.
    """
    kept = [
        select(
            dictionary, x_SBD, settings, active=settings.active, running_cut=running_cut, step=0, ranks=ranks
        ).entries
        for x_SBD in batches
    ]
    levels = []
    for source, norm_f in enumerate(dictionary.norms):
        scale_f = norm_f if settings.activation == "batch_topk" else torch.ones_like(norm_f)
        scores = [entries[source].value * scale_f[entries[source].feature] for entries in kept]
        count = ranks.all_reduce_(torch.tensor([sum(map(len, scores))], device=norm_f.device))
        levels.append(
            _level(dictionary, [x_SBD[source] for x_SBD in batches], source, scale_f, int(count), scores, ranks)
        )
    return levels


def _level(
    dictionary: Dictionary,
    inputs: Sequence[Tensor],
    source: int,
    scale_f: Tensor,
    count: int,
    kept_scores: Sequence[Tensor],
    ranks: FeatureRanks,
) -> float:
    """Half-way between the count-th and the next largest score of one source; equal ones are not above it."""
    start = float(kth_largest(kept_scores, max(1, count), ranks))
    for share in LOWERED:
        cut_f = share * start / scale_f if share * start else torch.zeros_like(scale_f)
        scores = []
        for x_BD in inputs:
            found = encode(x_BD, dictionary.W_enc[source], dictionary.b_enc[source], cut_f)
            scores.append(found.value * scale_f[found.feature])
        n_found = ranks.all_reduce_(torch.tensor([sum(map(len, scores))], device=scale_f.device))
        if int(n_found) > count:
            break
    upper = float(kth_largest(scores, count, ranks)) if count else 2 * float(kth_largest(scores, 1, ranks)) + 1.0
    lower = float(kth_largest(scores, count + 1, ranks))
    return (upper + lower) / 2


def thresholds(
    norm_F: Tensor, log_threshold_F: Tensor | None, settings: SparsitySection, level: float | None
) -> Tensor | None:
    """JumpReLU thresholds (F,) of one source in float32; None for a ReLU. ``level``: tau of `level_scores`."""
    if settings.activation == "relu":
        return None
    if log_threshold_F is not None:
        return log_threshold_F.float().exp()
    assert level is not None
    if settings.activation == "topk":
        return torch.full_like(norm_F, level, dtype=torch.float32)
    # a feature that writes nothing has score 0 and is never active
    return torch.where(norm_F > 0, level / norm_F, torch.inf).clamp(max=torch.finfo(torch.float32).max).float()
