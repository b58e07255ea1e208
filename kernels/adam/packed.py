"""Moments in eight bits: blocks of 256 numbers of a row share an exponent, each is a small float under it (README.md).

Letters: R rows, C columns, K blocks of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from circuit_tracer.kernels.random_bits import noise

BLOCK = 256
MANTISSA = 3  # bits
FIRST, SECOND = 15, 31  # the largest exponents of the two moments: a first moment has a sign, a second twice the range
LEAST, MOST = 64, 190  # of the exponents that blocks share, as float32 has them (127 is one): nothing gets subnormal


def n_blocks(width: int) -> int:
    """K."""
    return -(-width // BLOCK)


def pack(values_RC: Tensor, largest: int, first: int, key: int) -> tuple[Tensor, Tensor]:
    """Codes (R, C) and shared exponents (R, K), both uint8, of float32 moments; rounded stochastically, see `noise`.

    largest: `FIRST` or `SECOND`. A second moment that is not zero does not become zero.
    """
    top_RK = _top(values_RC)
    size = values_RC.abs() * _power(254 - _spread(top_RK, values_RC.shape[1]))
    random = (noise(first, values_RC.shape, key, values_RC.device) << 4) + 8
    below_normal = (size * float(2 ** (largest - 1) << MANTISSA) + random.float() * 2**-20).floor_().clamp_(max=8)
    normal = ((size.view(torch.int32) + random) >> 20) - ((127 - largest) << MANTISSA)
    code = torch.where(size < 2.0 ** (1 - largest), below_normal.int(), normal)
    code = code.clamp_(max=(largest << MANTISSA) + 2**MANTISSA - 1)
    if largest == SECOND:
        code = torch.where(values_RC > 0, code.clamp(min=1), code)
    else:
        code = code + 128 * (values_RC < 0)
    return code.to(torch.uint8), top_RK.to(torch.uint8)


def unpack(code_RC: Tensor, top_RK: Tensor, largest: int) -> Tensor:
    """The moments (R, C), float32."""
    code = code_RC.int()
    size = code if largest == SECOND else code & 127
    normal = ((size + ((127 - largest) << MANTISSA)) << 20).view(torch.float32)
    below_normal = size * 2.0 ** (1 - largest - MANTISSA)
    values = torch.where(size >= 2**MANTISSA, normal, below_normal) * _power(_spread(top_RK.int(), code.shape[1]))
    return values if largest == SECOND else torch.where(code >= 128, -values, values)


def _top(values_RC: Tensor) -> Tensor:
    """The exponent of a block's largest number, one more where rounding could reach it."""
    padded = functional.pad(values_RC.abs(), (0, -values_RC.shape[1] % BLOCK))
    most_RK = padded.view(len(values_RC), -1, BLOCK).amax(2)
    return ((most_RK.view(torch.int32) + (2**20 - 1)) >> 23).clamp_(LEAST, MOST)


def _spread(per_RK: Tensor, width: int) -> Tensor:
    return per_RK.repeat_interleave(BLOCK, 1)[:, :width]


def _power(exponent: Tensor) -> Tensor:
    """2^(exponent - 127), float32."""
    return (exponent << 23).view(torch.float32)
