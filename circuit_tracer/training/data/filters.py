"""Which tokens are trained on. Letters: b sequences, P positions, n = b * P tokens, S layers."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.text.special import SpecialTokens


def kept_tokens(ids_bP: Tensor, norm_nS: Tensor, special: SpecialTokens, max_norm_ratio: float) -> Tensor:
    """Indices of the tokens to train on, ascending.

    Left out are position 0 and special tokens (sinks of attention, which circuit-tracer zeroes), and tokens whose input is
    at any layer more than `max_norm_ratio` times as long as the median over the other tokens of the pass.
    """
    candidate_bP = torch.ones_like(ids_bP, dtype=torch.bool)
    candidate_bP[:, 0] = False
    for special_id in special.dropped:
        candidate_bP &= ids_bP != special_id
    candidates = candidate_bP.flatten().nonzero()[:, 0].to(norm_nS.device)
    if not len(candidates):
        return candidates
    return candidates[ordinary(norm_nS[candidates], max_norm_ratio)]


def ordinary(norm_nS: Tensor, max_norm_ratio: float) -> Tensor:
    """Mask (n,) of the tokens whose norm is at no layer above so many medians of the layer."""
    if not len(norm_nS):
        return torch.ones(0, dtype=torch.bool, device=norm_nS.device)
    return (norm_nS <= max_norm_ratio * norm_nS.median(dim=0).values).all(dim=1)
