"""How much of an activation a dictionary leaves."""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 4
LEAST_VARIANCE = 0.25


def nmse_of(y_nD: Tensor, error_nD: Tensor) -> Tensor:
    """What the features leave of y, summed over the prompt's positions, over the variance of y around its mean there.

    Over the square of y for fewer than `FEW` positions: so few have a mean that fits them too well. 1 is what predicting the
    mean, or nothing, would have. Where y hardly varies (one token again and again), variance counts as `LEAST_VARIANCE` of the
    square at least. 0 for a layer that gives nothing and is rebuilt as nothing.
    """
    if y_nD.device.type == "mps":  # has no float64
        y_nD, error_nD = y_nD.cpu(), error_nD.cpu()
    y_nD, squared = y_nD.double(), error_nD.double().pow(2).sum()
    square = y_nD.pow(2).sum()
    if len(y_nD) >= FEW:
        variance = (y_nD - y_nD.mean(0)).pow(2).sum()
        square = torch.maximum(variance, LEAST_VARIANCE * square)
    return squared / square.clamp_min(1e-30)
