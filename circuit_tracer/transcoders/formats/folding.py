"""Normalisation of inputs and outputs, folded into weights, so that what is loaded reads and writes the model's own units.

With x' = (x - mean) * scale going in, W x' + b = (W * scale) x + (b - W (scale * mean)). Numbers are computed in float32 or
wider; a factor of 1 leaves a tensor in its file.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shifted_bias(encoder_FD: Tensor, encoder_bias_F: Tensor, shift_D: Tensor) -> Tensor:
    """The encoder bias with which W x + b is what W (x - shift) + b was."""
    wide = torch.promote_types(encoder_FD.dtype, torch.float32)
    return encoder_bias_F.to(wide) - encoder_FD.to(wide) @ shift_D.to(wide)


def scaled(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """tensor * factor; the tensor itself, as a view of its file, where the factor is 1."""
    if isinstance(factor, float | int):
        factor = torch.tensor(float(factor))
    if bool((factor == 1).all()):
        return tensor
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(wide) * factor.to(wide)
