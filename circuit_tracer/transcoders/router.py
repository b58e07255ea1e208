"""A switch's router: of a token's input, which of N experts encodes it, and what their activations are multiplied with.

Expert i owns features i F/N ... (i + 1) F/N - 1. Letters: P positions, D d_model, F features a layer, B features of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.transcoders.frozen import FrozenModule


@dataclass(frozen=True)
class Routed:
    """Of some tokens: their experts (..., 1), and the router's probability of these (..., 1)."""

    expert: Tensor
    share: Tensor
    size: int  # F/N

    def factor(self, start: int, stop: int) -> Tensor:
        """What pre-activations of features ``start`` ... ``stop - 1`` are multiplied with, (..., B): zero of other experts."""
        owner_B = torch.arange(start, stop, device=self.expert.device) // self.size
        return self.share * (owner_B == self.expert)


class Router(FrozenModule):
    """softmax(x @ weight.T + bias); ``weight`` (N, D), ``bias`` (N,) stay float32 or wider: rounding sends tokens elsewhere."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight_ND: Tensor, bias_N: Tensor, n_features: int) -> None:
        super().__init__()
        for name, given in (("weight", weight_ND), ("bias", bias_N)):
            self.set_frozen(name, given.to(torch.promote_types(given.dtype, torch.float32)))
        self.n_features = n_features

    def route(self, x: Tensor) -> Routed:
        """Of inputs (..., D), computed in the wider dtype of both; of equal experts the first."""
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        logits = x.to(dtype) @ self.weight.T.to(x.device, dtype) + self.bias.to(x.device, dtype)
        share, expert = torch.softmax(logits, dim=-1).max(dim=-1, keepdim=True)
        return Routed(expert, share.to(torch.promote_types(x.dtype, torch.float32)), self.n_features // len(self.bias))
