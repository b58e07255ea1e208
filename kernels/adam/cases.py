"""Random problems of adam."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.kernels.adam import Rows, Update, packed
from circuit_tracer.kernels.cases import Calls, Cases, Dtypes
from circuit_tracer.kernels.random_bits import key_of

F64, F32, BF16, PACKED = torch.float64, torch.float32, torch.bfloat16, torch.uint8


def draw(dtypes: Dtypes, n_rows: int, width: int, seed: int = 0, norm: bool = True) -> tuple[Rows, Tensor]:
    """Rows in the formats of weights and moments, and their gradient."""
    generator = torch.Generator().manual_seed(seed)
    weight, first, second, grad = torch.randn(4, n_rows, width, generator=generator, dtype=F64)
    wide = F64 if dtypes[0] is F64 else F32
    first, second = (0.1 * first).to(wide), (0.01 * second.square()).to(wide)
    norm_R = torch.zeros(n_rows, dtype=wide) if norm else None
    if dtypes[1] is PACKED:
        first, first_exponent = packed.pack(first, packed.FIRST, 0, key_of(1))
        second, second_exponent = packed.pack(second, packed.SECOND, 0, key_of(2))
        rows = Rows(weight.to(dtypes[0]), first, second, first_exponent, second_exponent, norm_R)
    else:
        rows = Rows(weight.to(dtypes[0]), first.to(dtypes[1]), second.to(dtypes[1]), norm=norm_R)
    return rows, 0.2 * grad.to(wide)


def calls(dtypes: Dtypes, n_rows: int, width: int, step: int) -> Calls:
    """R, C, and how many updates came before."""
    update = Update(step, 1e-3, 0.9, 0.999, 1e-8, 4 * width, (key_of(1), key_of(2), key_of(3)))
    return {"adam_": (*draw(dtypes, n_rows, width), update)}


CASES = Cases(
    "adam",
    calls,
    shapes=[(3, 260, 0), (5, 63, 7), (2, 1, 100)],
    # what is kept in bfloat16 is rounded up or down: off by less than its spacing
    torch={(F64, F64): 1e-14, (F32, F32): 1e-6, (BF16, F32): 2**-7, (BF16, BF16): 2**-7},
    triton={(F32, F32): 1e-6, (BF16, F32): 2**-7, (BF16, BF16): 2**-7},
    compiled=[
        ((F32, F32), (4, 768, 1)),
        ((BF16, F32), (4, 9216, 1)),
        ((BF16, BF16), (4, 2304, 1)),
        ((BF16, PACKED), (4, 768, 1)),
        ((F32, PACKED), (4, 63, 1)),
    ],
)
