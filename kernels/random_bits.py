"""Random bits that depend on a key and a place alone, not on what was drawn before: the same on every device, after a resume,
on any number of ranks.

Word ``i`` under a key is output i of the generator splitmix64 (Steele, Lea and Flood 2014) seeded with a hash of the key. A
word has the 16 bits that each of four neighbouring places needs to round a number. `random_bits_triton.py` computes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Constants of splitmix64, as signed 64-bit integers.
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_ALL = 2**64 - 1


def key_of(*parts: int) -> int:
    """The hash of a key, a signed 64-bit integer."""
    seed = 0
    for part in parts:
        word = (seed + part + GOLDEN) & _ALL
        word = ((word ^ word >> 30) * FIRST) & _ALL
        word = ((word ^ word >> 27) * SECOND) & _ALL
        seed = word ^ word >> 31
    return seed - 2**64 if seed >= 2**63 else seed


def words(counter: Tensor, key: int) -> Tensor:
    """64 random bits (int64) for every ``counter`` (int64) under the hash ``key``."""
    state = (counter + 1) * GOLDEN + key
    state ^= _shift(state, 30)
    state *= FIRST
    state ^= _shift(state, 27)
    state *= SECOND
    state ^= _shift(state, 31)
    return state


def noise(first: int, shape: torch.Size, key: int, device: torch.device) -> Tensor:
    """16 random bits (int32, not negative) for each of the places ``first``, ``first + 1``, ... in the order of ``shape``."""
    count = shape.numel()
    drawn = words(torch.arange(first // 4, (first + count + 3) // 4, device=device), key)
    skipped = first % 4
    return (drawn.view(torch.int16)[skipped : skipped + count].int() & 0xFFFF).view(shape)


def round_stochastically(values: Tensor, first: int, key: int) -> Tensor:
    """float32 ``values`` to bfloat16, up or down with the probability that keeps the mean.

    ``first``: the place of the first value, from which the others count on. What is no number stays as it is.
    """
    raw = values.float().view(torch.int32)
    rounded = (raw + noise(first, values.shape, key, values.device)) & -0x10000
    return torch.where(values.isfinite(), rounded.view(torch.float32), values.float()).bfloat16()


def _shift(state: Tensor, by: int) -> Tensor:
    """Logical shift right: int64 shifts carry the sign along."""
    return (state >> by).bitwise_and_((1 << (64 - by)) - 1)
