"""The words of `random_bits.py`, and what is rounded with them, for Triton kernels.

Imported by `triton.py` files only.
"""

from __future__ import annotations

import triton.language as tl

from circuit_tracer.kernels.launch import kernel

_FIRST = tl.constexpr(0xBF58476D1CE4E5B9)
_SECOND = tl.constexpr(0x94D049BB133111EB)
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)


@kernel
def words(counter: tl.tensor, key: tl.tensor) -> tl.tensor:
    """64 random bits (uint64) for every counter (int64) under a key (int64)."""
    state = (counter + 1).to(tl.uint64) * _GOLDEN + key.to(tl.uint64)
    state = (state ^ (state >> 30)) * _FIRST
    state = (state ^ (state >> 27)) * _SECOND
    return state ^ (state >> 31)


@kernel
def noise(first: tl.tensor, key: tl.tensor, N: tl.constexpr, ALIGNED: tl.constexpr) -> tl.tensor:
    """16 random bits (int32) for each of N places from ``first``; ALIGNED: ``first`` is a multiple of four."""
    if ALIGNED:
        drawn = words(first // 4 + tl.arange(0, N // 4), key)
        lanes = drawn[:, None] >> (16 * tl.arange(0, 4)).to(tl.uint64)[None, :]
        bits = tl.reshape(lanes, (N,))
    else:
        place = first + tl.arange(0, N)
        bits = words(place // 4, key) >> (16 * (place % 4)).to(tl.uint64)
    return (bits & 0xFFFF).to(tl.int32)


@kernel
def rounded(values: tl.tensor, random: tl.tensor) -> tl.tensor:
    """float32 values to numbers that bfloat16 holds, still float32; what is no number stays as it is."""
    up_or_down = ((values.to(tl.int32, bitcast=True) + random) & -0x10000).to(tl.float32, bitcast=True)
    return tl.where(values - values == 0, up_or_down, values)
