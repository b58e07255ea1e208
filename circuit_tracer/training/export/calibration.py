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
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.base import Now
from circuit_tracer.training.sparsity.ranking import kth_largest
from circuit_tracer.training.step.dictionary import Dictionary

# Held-out tokens calibrated on, and as many others on which the files are compared; if a batch has not more.
TOKENS = 4096
# Scores are looked for above the n-th kept times these, until one more than was kept is found.
LOWERED = (0.9, 0.5, 0.1, 0.0)


def n_batches(batch: int) -> int:
    """How many batches of held-out tokens to calibrate on, and how many others to compare on."""
    return max(1, TOKENS // batch)


def level_scores(
    dictionary: Dictionary,
    batches: Sequence[Sequence[Tensor]],
    settings: SparsitySection,
    running_cut: float | None,
    ranks: FeatureRanks,
) -> list[float]:
    """tau_s of every source, for a rule that needs one: above it lie as many scores of ``batches`` as the rule keeps.

    batches: normalised inputs (B, D) of every source, held out from training. A score is pre * `Rule.scale`. A source of which
    the rule keeps nothing gets a level above all its scores.
    """
    rule, now = rule_of(settings), Now(settings.active, running_cut)
    kept = [rule.select(dictionary, x_SBD, now, ranks).entries for x_SBD in batches]
    levels = []
    for source, norm_f in enumerate(dictionary.norms):
        scale_f = rule.scale(norm_f, dictionary.reach(source))
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
