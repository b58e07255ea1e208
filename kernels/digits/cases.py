"""Random problems of digits."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.kernels.cases import Calls, Cases, Dtypes

I32, I64 = torch.int32, torch.int64


def draw(n_keys: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Keys of positive floats, which share most of their upper bits."""
    generator = torch.Generator().manual_seed(seed)
    floats = 1 + 3 * torch.rand(n_keys, generator=generator, dtype=torch.float64)
    return floats.float().view(I32) if dtype is I32 else floats.view(I64)


def calls(dtypes: Dtypes, n_keys: int, digit: int) -> Calls:
    """n, and which digit of 11 bits, 0 for the lowest; bits above it are those of some key."""
    key_n = draw(n_keys, dtypes[0])
    width, shift = 8 * key_n.element_size(), 11 * digit
    bits = min(11, width - shift)
    above = shift + bits
    high = torch.zeros(1, dtype=I64)
    if n_keys and above < width - 1:
        high = key_n[n_keys // 2 :][:1].long() >> above
    return {"digit_counts": (key_n, high, shift, bits)}


CASES = Cases(
    "digits",
    calls,
    shapes=[(0, 0), (1, 2), (300, 2), (70, 1), (70, 0)],
    torch={(I32,): 0, (I64,): 0},
    triton={(I32,): 0, (I64,): 0},
    compiled=[((I32,), (5000, 2)), ((I32,), (5000, 1)), ((I64,), (5000, 5))],
)
