"""A switch's router: which expert a token goes to, with which probability, and what keeps experts equally busy (§5).

Letters: B tokens, N experts, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.training.feature_ranks import FeatureRanks


@dataclass(frozen=True)
class Route:
    """Of the tokens of one source. load_N: the share of tokens that each expert gets, of the whole batch; no gradient."""

    share_BN: Tensor  # probabilities
    expert_B: Tensor  # int64, the most probable
    load_N: Tensor

    @property
    def chosen_B(self) -> Tensor:
        """The probability of a token's expert."""
        return self.share_BN.gather(1, self.expert_B[:, None])[:, 0]

    def balance(self, weight: float) -> tuple[Tensor, Tensor]:
        """weight * N * sum of load and mean probability, which is least where all are equal, and its gradient by
        probabilities, (N,) for every token alike.
        """
        scale = weight * len(self.load_N)
        loss = scale * (self.load_N * self.share_BN.mean(0)).sum()
        return loss, scale / max(1, len(self.share_BN)) * self.load_N

    def through(self, grad_BN: Tensor) -> Tensor:
        """dL/dlogits of dL/dprobabilities: (B, N)."""
        return self.share_BN * (grad_BN - (self.share_BN * grad_BN).sum(1, keepdim=True))


def route(x_BD: Tensor, weight_ND: Tensor, bias_N: Tensor, ranks: FeatureRanks) -> Route:
    """softmax(x W^T + b); of equal experts the first."""
    weight_ND, bias_N = weight_ND.to(x_BD.dtype), bias_N.to(x_BD.dtype)
    share_BN = torch.softmax(torch.addmm(bias_N, x_BD, weight_ND.T), dim=1)
    expert_B = share_BN.argmax(1)
    each_B = torch.full_like(expert_B, 1, dtype=x_BD.dtype) / max(1, len(x_BD))
    return Route(share_BN, expert_B, ranks.mean_(torch.zeros_like(bias_N).index_add_(0, expert_B, each_B)))
