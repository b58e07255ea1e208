"""Random numbers that depend on a key alone, not on what was drawn before: the same after a resume, on any number of ranks.

The bits are those of `circuit_tracer.kernels.random_bits`.
"""

from __future__ import annotations

from torch import Tensor

from circuit_tracer.kernels.random_bits import key_of, words


def bits(counter: Tensor, *key: int) -> Tensor:
    """63 random bits (int64, non-negative) for every ``counter`` (int64) under ``key``."""
    return words(counter, key_of(*key)) & (2**63 - 1)


def uniform(counter: Tensor, *key: int) -> Tensor:
    """Uniform in [0, 1), float32, for every ``counter`` under ``key``."""
    return (bits(counter, *key) >> 39).float() / 2**24
