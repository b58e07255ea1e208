"""Random problems of encode."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.kernels.cases import Calls, Cases, Dtypes

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
GRID = (
    16  # multiples of 1/16 with |x| < 8 fit bfloat16, and sums of their products fit float32: every decision is exact
)


def draw(
    n_rows: int,
    width: int,
    n_features: int,
    dtypes: Dtypes,
    pattern: str = "some",
    seed: int = 0,
    grid: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (B, D), weights (F, D), biases, cuts (F,); on the grid, some pre-activations equal their cut."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (values * GRID).round().clamp(-127, 127) / GRID if grid else values

    x_BD, weight_FD, bias_F = normal(n_rows, width), normal(n_features, width), normal(n_features)
    spread = width**0.5
    cut_F = (normal(n_features) * 0.3 * spread * GRID).round() / GRID + (spread * GRID // 2) / GRID
    if pattern == "none":
        cut_F.fill_(torch.inf)
    elif pattern == "all":
        cut_F.fill_(-torch.inf)
    elif pattern == "hot":
        cut_F.fill_(5 * spread + 8)
        cut_F[n_features // 2] = -100 * spread
    elif pattern == "empty_rows":
        x_BD[::2] = 0
        cut_F.clamp_min_(8)
    return x_BD.to(dtypes[0]), weight_FD.to(dtypes[1]), bias_F.to(dtypes[0]), cut_F.to(dtypes[0])


def calls(dtypes: Dtypes, n_rows: int, width: int, n_features: int, k: int) -> Calls:
    """B, D, F and how many of a token `encode_top_k` keeps; biases are never in half precision."""
    x_BD, weight_FD, bias_F, cut_F = draw(n_rows, width, n_features, dtypes)
    wide = F64 if dtypes[0] is F64 else F32
    bias_F, cut_F = bias_F.to(wide), cut_F.to(wide)
    return {"encode": (x_BD, weight_FD, bias_F, cut_F), "encode_top_k": (x_BD, weight_FD, bias_F, k)}


CASES = Cases(
    "encode",
    calls,
    shapes=[(17, 63, 18, 3), (33, 7, 5, 1)],
    torch={(F64, F64): 1e-14, (F32, F32): 1e-6, (F32, BF16): 1e-6},
    triton={(F64, F64): 1e-14, (F32, F32): 1e-6, (F32, BF16): 1e-6, (BF16, BF16): 1e-6},
    compiled=[
        ((F32, BF16), (256, 2304, 512, 16)),
        ((BF16, BF16), (256, 768, 512, 16)),
        ((F32, F32), (256, 576, 512, 16)),
        ((F64, F64), (256, 63, 512, 16)),
    ],
)
