"""Random numbers that depend on a key alone, not on what was drawn before: the same after a resume, on any number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor

# Constants of the splitmix64 finaliser, as signed 64-bit integers.
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def bits(counter: Tensor, *key: int) -> Tensor:
    """63 random bits (int64, non-negative) for every ``counter`` (int64) under ``key``."""
    state = counter
    for part in key:
        state = _mix(state * 31 + part + _GOLDEN)
    return _mix(state + _GOLDEN) & (2**63 - 1)


def uniform(counter: Tensor, *key: int) -> Tensor:
    """Uniform in [0, 1), float32, for every ``counter`` under ``key``."""
    return (bits(counter, *key) >> 39).float() / 2**24


def round_stochastically(values: Tensor, first: int, *key: int) -> Tensor:
    """float32 ``values`` to bfloat16, up or down with the probability that keeps the mean (training/README.md §8).

    ``first``: the place of the first value, from which the others count on.
    """
    counter = torch.arange(first, first + values.numel(), device=values.device).view(values.shape)
    noise = (bits(counter, *key) & 0xFFFF).int()
    raw = values.float().view(torch.int32)
    rounded = (raw + noise) & -0x10000
    return torch.where(values.isfinite(), rounded.view(torch.float32), values.float()).bfloat16()


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shift(state, 30)) * _FIRST
    state = (state ^ _shift(state, 27)) * _SECOND
    return state ^ _shift(state, 31)


def _shift(state: Tensor, by: int) -> Tensor:
    """Logical shift right: int64 shifts carry the sign along."""
    return (state >> by) & ((1 << (64 - by)) - 1)
