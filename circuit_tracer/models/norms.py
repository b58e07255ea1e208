"""Norms with their scale frozen (attribution/README.md §4.3).

Letters: P positions, D d_model, T rows in flight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.architecture import NormKind

# two kinds of norm differ by far more, and roundings of a norm's own code by less, relative to the largest value
_SAME = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass(frozen=True)
class NormParameters:
    """A norm read through the table: out = gain * (x - mean?) / sigma + shift; `gain` is 1 + weight for Gemma."""

    gain: Tensor  # (D,); of queries and keys also (H, D), or () where it is one
    shift: Tensor | None  # (D,)
    epsilon: float
    centred: bool

    @classmethod
    def read(cls, module: nn.Module, kind: NormKind, like_D: Tensor, epsilon: float | None = None) -> NormParameters:
        """Take gain, shift and epsilon (unless given) from a norm module, in width, dtype and device of `like_D`."""
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        gain = torch.ones_like(like_D) if weight is None else weight.detach().to(like_D.dtype)
        plus_one = weight is not None and kind in (NormKind.RMS_PLUS_ONE, NormKind.LAYER_PLUS_ONE)
        return cls(
            gain=gain + 1 if plus_one else gain,
            shift=None if bias is None else bias.detach().to(like_D.dtype),
            epsilon=_epsilon(module) if epsilon is None else epsilon,
            centred=kind in (NormKind.LAYER, NormKind.LAYER_PLUS_ONE),
        )

    @classmethod
    def recognise(cls, module: nn.Module, dtype: torch.dtype) -> NormParameters | None:
        """Parameters, in a dtype, of a norm of unknown kind: the kind whose formula gives what the module gives, or None."""
        weight: Tensor | None = getattr(module, "weight", None)
        if not _says_epsilon(module) or (weight is not None and weight.is_meta):
            return None
        like = torch.empty((), dtype=dtype) if weight is None else weight.detach().to(dtype)
        own = torch.float32 if weight is None else weight.dtype
        shape = like.shape if like.ndim else torch.Size([8])
        probe = (torch.arange(shape.numel(), device=like.device).sin() + 0.5).reshape(shape).to(own)
        with torch.no_grad():
            expected = module(probe).to(dtype)
        for kind in NormKind:
            found = cls.read(module, kind, like)
            made = found.freeze(found.inverse_sigma(probe)).forward(probe.to(dtype))
            if float((made - expected).abs().max()) <= _SAME[own] * float(expected.abs().max()):
                return found
        return None

    def inverse_sigma(self, x_PD: Tensor) -> Tensor:
        """1/sigma (P,) of the true activations."""
        x = x_PD.to(self.gain.dtype)
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return torch.rsqrt(x.pow(2).mean(-1) + self.epsilon)

    def freeze(self, inverse_sigma_P: Tensor) -> FrozenNorm:
        """The linear map this norm is for one prompt."""
        return FrozenNorm(self.gain, self.shift, inverse_sigma_P, self.centred)


def _says_epsilon(module: nn.Module) -> list[float]:
    found = (getattr(module, name, None) for name in ("variance_epsilon", "eps"))
    return [float(value) for value in found if isinstance(value, int | float)]


def _epsilon(module: nn.Module) -> float:
    if said := _says_epsilon(module):
        return said[0]
    raise UnsupportedModelError(
        f"{type(module).__name__} has no variance_epsilon or eps: name it in the table (norm_epsilon)"
    )


@dataclass(frozen=True)
class FrozenNorm:
    """A norm whose 1/sigma is a constant of the prompt: an affine map of the residual stream, position by position."""

    gain: Tensor  # (D,)
    shift: Tensor | None  # (D,)
    inverse_sigma: Tensor  # (P,)
    centred: bool

    def forward(self, x: Tensor, constants: bool = True) -> Tensor:
        """(..., P, D) -> (..., P, D); `constants` adds the shift."""
        return self.amplify(self.normalise(x), constants)

    def normalise(self, x: Tensor) -> Tensor:
        """x (..., P, D) centred if the norm centres, over sigma, before the gain."""
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return x * self.inverse_sigma[..., None]

    def amplify(self, normalised: Tensor, constants: bool = True) -> Tensor:
        """What follows `normalise`: the gain, and the shift with `constants`."""
        out = normalised * self.gain
        return out + self.shift if constants and self.shift is not None else out

    def at(self, x_nD: Tensor, position_n: Tensor, gain: bool = True) -> Tensor:
        """The linear part, for vectors (n, D) that sit at `position_n`; `gain=False` leaves the gain out."""
        x = x_nD - x_nD.mean(-1, keepdim=True) if self.centred else x_nD
        return (x * self.gain if gain else x) * self.inverse_sigma[position_n][:, None]

    def adjoint_at(self, g_nD: Tensor, position_n: Tensor, gain: bool = True) -> Tensor:
        """Transpose of the linear part, for vectors (n, D) that sit at `position_n`; `gain=False` leaves the gain out."""
        g = (g_nD * self.gain if gain else g_nD) * self.inverse_sigma[position_n][:, None]
        return g - g.mean(-1, keepdim=True) if self.centred else g

    def columns(self, weight_OD: Tensor) -> Tensor:
        """W N without 1/sigma: the norm's gain and centring folded into the columns of a matrix (O, D) that reads it."""
        weight = weight_OD * self.gain
        return weight - weight.mean(-1, keepdim=True) if self.centred else weight
