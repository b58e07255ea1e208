"""Random numbers that depend on a key alone, not on what was drawn before: the same after a resume, on any number of ranks.

Number ``i`` under a key is output i of the generator splitmix64 (Steele, Lea and Flood 2014) seeded with a hash of the key.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Constants of splitmix64, as signed 64-bit integers.
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def bits(counter: Tensor, *key: int) -> Tensor:
    """63 random bits (int64, non-negative) for every ``counter`` (int64) under ``key``."""
    return _words(counter, key) & (2**63 - 1)


def uniform(counter: Tensor, *key: int) -> Tensor:
    """Uniform in [0, 1), float32, for every ``counter`` under ``key``."""
    return (bits(counter, *key) >> 39).float() / 2**24


def round_stochastically(values: Tensor, first: int, *key: int) -> Tensor:
    """float32 ``values`` to bfloat16, up or down with the probability that keeps the mean (training/README.md §8).

    ``first``: the place of the first value, from which the others count on. What is no number stays as it is.
    """
    # a random word has the 16 bits that each of four places need
    start, stop = first // 4, (first + values.numel() + 3) // 4
    words = _words(torch.arange(start, stop, device=values.device), key)
    skipped = first - 4 * start
    noise = words.view(torch.int16)[skipped : skipped + values.numel()].view(values.shape)
    raw = values.float().view(torch.int32)
    rounded = (raw + (noise.int() & 0xFFFF)) & -0x10000
    return torch.where(values.isfinite(), rounded.view(torch.float32), values.float()).bfloat16()


def _words(counter: Tensor, key: tuple[int, ...]) -> Tensor:
    seed = torch.zeros((), dtype=torch.int64)
    for part in key:
        seed = _mix(seed + part + _GOLDEN)
    return _mix((counter + 1) * _GOLDEN + int(seed))


def _mix(state: Tensor) -> Tensor:
    """The finaliser of splitmix64, in place."""
    state ^= _shift(state, 30)
    state *= _FIRST
    state ^= _shift(state, 27)
    state *= _SECOND
    state ^= _shift(state, 31)
    return state


def _shift(state: Tensor, by: int) -> Tensor:
    """Logical shift right: int64 shifts carry the sign along."""
    return (state >> by).bitwise_and_((1 << (64 - by)) - 1)
