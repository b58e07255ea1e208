"""Normalisation of inputs and outputs, folded into weights, so that what is loaded reads and writes the model's own units.

With x' = (x - mean) * scale going in, W x' + b = (W * scale) x + (b - W (scale * mean)). Numbers are computed in float32 or
wider; a factor of 1 leaves a tensor in its file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoding:
    """pre = W x + b of the input as a file's library feeds it, and what is kept of it."""

    encoder_FD: Tensor
    bias_F: Tensor
    threshold: Tensor | None = None
    k: int | None = None


def shifted_bias(encoder_FD: Tensor, encoder_bias_F: Tensor, shift_D: Tensor) -> Tensor:
    """The encoder bias with which W x + b is what W (x - shift) + b was."""
    wide = torch.promote_types(encoder_FD.dtype, torch.float32)
    return encoder_bias_F.to(wide) - encoder_FD.to(wide) @ shift_D.to(wide)


def centred(matrix: Tensor, dim: int) -> Tensor:
    """The matrix with which that of x - mean(x) is one of x; ``dim`` is its axis of the input's entries."""
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    return wide - wide.mean(dim=dim, keepdim=True)


def scaled(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """tensor * factor; the tensor itself, as a view of its file, where the factor is 1."""
    if isinstance(factor, float | int):
        factor = torch.tensor(float(factor))
    if bool((factor == 1).all()):
        return tensor
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(wide) * factor.to(wide)


def by_decoder_norm(encoder_FD: Tensor, encoder_bias_F: Tensor, decoder_FD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encoder, its bias and decoder with each decoder row's norm moved to the encoder, so that the activation function sees
    pre * |W_dec|; what is decoded stays as it is.
    """
    norm_F = decoder_FD.float().norm(dim=1)
    scale_F1 = (1 / norm_F.where(norm_F > 0, 1.0))[:, None]
    return scaled(encoder_FD, norm_F[:, None]), scaled(encoder_bias_F, norm_F), scaled(decoder_FD, scale_F1)


def gated_as_jump(
    encoder_FD: Tensor, gate_bias_F: Tensor, magnitude_bias_F: Tensor, log_scale_F: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(encoder, bias, threshold) of the JumpReLU that a gated encoder (arXiv 2404.16014) is.

    It is active where W x + b_gate > 0, with the magnitude max(m, 0), m = e^r W x + b_mag. Both read along one direction, so
    that is m where m > max(0, b_mag - e^r b_gate).
    """
    wide = torch.promote_types(encoder_FD.dtype, torch.float32)
    scale_F = log_scale_F.to(wide).exp()
    threshold_F = (magnitude_bias_F.to(wide) - scale_F * gate_bias_F.to(wide)).clamp(min=0)
    return scaled(encoder_FD, scale_F[:, None]), magnitude_bias_F, threshold_F
