"""Rules that decide feature by feature. They begin at the L0 asked for; steering keeps it, or the tanh penalty (§5) decides.

Letters: S source layers, B tokens, F features of a layer (f: owned by this rank), D width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from circuit_tracer.kernels.encode import encode, row_blocks
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.base import Rule
from circuit_tracer.training.sparsity.ranking import kth_largest
from circuit_tracer.training.sparsity.selection import Selection
from circuit_tracer.training.step.dictionary import Dictionary, row_norms

LOWERED = (0.9, 0.6, 0.0)  # times the level of unit Gaussians: scores are looked for above it until there are enough
# Of what log L0 is off, the share that a bias falls by after a step, in units of the encoder's norm. For a few percent of
# Gaussians, log L0 falls by about 2.4 for each 1 in units of the spread: half of the error goes.
STEERED = 0.2
LEAST_LEVEL = 1e-3  # of a start threshold, in units of the spread: its logarithm must be finite


class PenaltyRule(Rule):
    """Decides feature by feature."""

    has_budget = False
    has_penalty = True
    most_at_start = (
        1 / 4
    )  # half of them lie above zero, from where a threshold rises by a factor a step, and hardly at all

    @property
    def steered(self) -> bool:
        """A penalty of a given weight decides how many are active; without one k does."""
        return self.settings.penalty is None

    def penalised(self, selection: Selection, source: int) -> SparseActivations:
        """The entries that the penalty counts, with what it counts of each: activations."""
        return selection.activations(source)

    def penalty(self, strength_n: Tensor) -> tuple[Tensor, Tensor]:
        """What each costs, lambda = 1, and its derivative. strength_n: n_f times what is counted."""
        tanh_n = torch.tanh(self.settings.penalty_scale * strength_n)
        return tanh_n, self.settings.penalty_scale * (1 - tanh_n.square())

    @abstractmethod
    def start_(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], active: float, ranks: FeatureRanks) -> None:
        """Change a new dictionary before its first step, so that k = ``active`` features of a token and layer are active.

        What a dictionary that was trained before came with stays.
        """

    @abstractmethod
    def steer_(self, dictionary: Dictionary, excess: Tensor, rare: Sequence[Tensor]) -> None:
        """Change a dictionary after a step, so that fewer features are active. excess: log(L0 / k), 0-d. rare: (f,) a
        source, of features that have not fired for long: the share of the time in which they are brought back, else 0.
        """

    def entries(self, active_at_start: float, n_features: int) -> tuple[float, float]:
        """k; with a penalty of a given weight what it begins with, as nobody knows how fast they become fewer."""
        mean, most = super().entries(active_at_start, n_features)
        return (mean, most) if self.steered else (most, most)


class BiasRule(PenaltyRule):
    """Rules whose pre-activations pass above zero, so that biases are thresholds."""

    def start_(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], active: float, ranks: FeatureRanks) -> None:
        """Biases as far below zero as ``active`` features need; those that a dictionary came with stay."""
        for source, (x_BD, bias_f) in enumerate(zip(x_SBD, dictionary.b_enc, strict=True)):
            started_f = start_thresholds(dictionary, source, x_BD, active, ranks).neg_().to(bias_f.dtype)
            bias_f.copy_(torch.where(bias_f == 0, started_f, bias_f))

    def steer_(self, dictionary: Dictionary, excess: Tensor, rare: Sequence[Tensor]) -> None:
        """All biases, each by a share of its feature's encoder norm: about that of the spread of its pre-activations."""
        for weight_fD, bias_f in zip(dictionary.W_enc, dictionary.b_enc, strict=True):
            bias_f -= (STEERED * excess) * row_norms(weight_fD).to(bias_f.dtype)


def start_thresholds(dictionary: Dictionary, source: int, x_BD: Tensor, active: float, ranks: FeatureRanks) -> Tensor:
    """Thresholds (f,) above which ``active`` features of a token lie on average, each with about its share.

    A feature's threshold is its spread, the root mean square of its pre-activations over the batch, times a level that is the
    same for all: half-way between the round(k B)-th largest pre-activation in units of the spread and the next.
    """
    weight_fD, bias_f = dictionary.W_enc[source], dictionary.b_enc[source]
    spread_f = _spread(x_BD, weight_fD, bias_f, ranks)
    guess = gaussian_level(active / dictionary.n_features)
    kept = max(1, round(active * x_BD.shape[0] * ranks.replicas.world))
    for share in LOWERED:
        lowered = share * guess
        found = encode(x_BD, weight_fD, bias_f, lowered * spread_f)
        ranked = [found.value / spread_f[found.feature]]
        last, next_one = (float(kth_largest(ranked, count, ranks.plain)) for count in (kept, kept + 1))
        if next_one > lowered:
            break
    return spread_f * max((last + next_one) / 2, LEAST_LEVEL)


def _spread(x_BD: Tensor, weight_fD: Tensor, bias_f: Tensor, ranks: FeatureRanks) -> Tensor:
    square_f = torch.zeros_like(bias_f, dtype=x_BD.dtype)
    weight_fD = weight_fD.to(x_BD.dtype)
    for rows in row_blocks(x_BD, weight_fD.shape[0]):
        square_f += torch.addmm(bias_f.to(x_BD.dtype), x_BD[rows], weight_fD.T).square_().sum(0)
    mean_f = ranks.mean_(square_f.div_(max(1, x_BD.shape[0])))
    return mean_f.sqrt_().clamp_min_(torch.finfo(x_BD.dtype).tiny)


def gaussian_level(share: float) -> float:
    """The level that a share of unit Gaussians lies above; 0 where half of them or more do."""
    return NormalDist().inv_cdf(1 - share) if share < 0.5 else 0.0


def share_above(level: float) -> float:
    """Share of unit Gaussians above ``level``: about that of pre-activations at the start (§3)."""
    return 0.5 * math.erfc(level / math.sqrt(2))
