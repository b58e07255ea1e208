"""Random problems of the sparse decoder products."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.kernels.cases import Calls, Cases, Dtypes
from circuit_tracer.kernels.sparse_activations import SparseActivations

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
PATTERNS = ("some", "none", "all", "hot", "empty_rows")  # which (token, feature) pairs are entries


def draw(
    n_rows: int, n_features: int, width: int, dtypes: Dtypes, pattern: str = "some", seed: int = 0
) -> tuple[Tensor, SparseActivations, Tensor]:
    """Out or gradient (B, C), entries, weights (F, C): float64 values rounded to their dtype."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    density = {"none": 0.0, "all": 1.0, "hot": 0.02}.get(pattern, 0.2)
    active = torch.rand(n_rows, n_features, generator=generator) < density
    if pattern == "hot":
        active[:, n_features // 2] = True
    elif pattern == "empty_rows":
        active[::2] = False
    row, feature = active.nonzero(as_tuple=True)
    entries = SparseActivations.from_entries(row, feature, normal(len(row)).to(dtypes[0]), n_rows, n_features)
    return normal(n_rows, width).to(dtypes[0]), entries, normal(n_features, width).to(dtypes[1])


def calls(dtypes: Dtypes, n_rows: int, n_features: int, width: int, pattern: str) -> Calls:
    """B, F, C; results of `decode_` are not kept in half precision."""
    grad_BC, entries, weight_FC = draw(n_rows, n_features, width, dtypes, pattern)
    both = {"value_gradients": (grad_BC, entries, weight_FC), "gradients": (grad_BC, entries, weight_FC)}
    forward = {} if dtypes[0] is BF16 else {"decode_": (grad_BC.clone(), entries, weight_FC)}
    return {**forward, **both, "weight_gradients": (grad_BC, entries, 0, n_features)}


CASES = Cases(
    "decode",
    calls,
    shapes=[(9, 37, 63, "some"), (5, 7, 1, "empty_rows"), (70, 3, 5, "hot")],
    torch={(F64, F64): 1e-14, (F32, F32): 1e-6, (F32, BF16): 1e-6},
    triton={(F64, F64): 1e-14, (F32, F32): 1e-6, (F32, BF16): 1e-6},
    compiled=[
        ((F32, BF16), (256, 2, 2304, "all")),
        ((F32, F32), (256, 2, 63, "all")),
        ((BF16, BF16), (256, 2, 9216, "all")),
        ((F64, F64), (256, 2, 576, "all")),
    ],
)
