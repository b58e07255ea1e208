"""Random problems of contract."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit_tracer.kernels.cases import Calls, Cases, Dtypes
from circuit_tracer.kernels.contract.addressed import AddressedRows

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


def draw(
    n_rows: int, d_model: int, counts: Sequence[int], dtype: torch.dtype, seed: int = 0, gap: int = 2
) -> tuple[Tensor, Tensor, Tensor, list[int], list[int]]:
    """Zeros to add to, gradients, sources, offsets, first columns; `gap` columns between the positions belong to others."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    ptr = [0, *torch.tensor(counts).cumsum(0).tolist()]
    column = [start + gap * (position + 1) for position, start in enumerate(ptr[:-1])]
    width = ptr[-1] + gap * (len(counts) + 1)
    return normal(n_rows, width), normal(n_rows, len(counts), d_model), normal(ptr[-1], d_model), ptr, column


def addressed(
    n_rows: int, width: int, counts: Sequence[int], dtypes: Dtypes, seed: int = 0, beyond: int = 1
) -> tuple[Tensor, Tensor, AddressedRows]:
    """Rows of three tables: of a checkpoint, of one layer inside one that is wider by it and `beyond`, and alone."""
    out_TN, g_TPD, _, ptr, _ = draw(n_rows, width, counts, torch.float64, seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtypes[1])

    tables = [normal(5, width), normal(3, 2 * width + beyond)[:, width : 2 * width], normal(1, width)]
    n = ptr[-1]
    table = torch.randint(0, 3, (n,), generator=generator)
    row = torch.randint(0, 99, (n,), generator=generator) % torch.tensor([5, 3, 1])[table]
    scale = torch.randn(n, generator=generator, dtype=torch.float64).float()
    column = torch.randperm(out_TN.shape[1], generator=generator)[:n]
    result = torch.float64 if dtypes[0] is torch.float64 else torch.float32
    return out_TN.to(result), g_TPD.to(dtypes[0]), AddressedRows(tables, table, row, scale, column, ptr)


def calls(dtypes: Dtypes, n_rows: int, width: int, counts: Sequence[int], beyond: int) -> Calls:
    """T, D, sources of each position; with none beyond, addresses are aligned as far as the width is."""
    rows = addressed(n_rows, width, counts, dtypes, beyond=beyond)
    _, _, source_nD, ptr, column = draw(n_rows, width, counts, torch.float64)
    side_by_side = (rows[0].clone(), rows[1].clone(), source_nD.to(dtypes[1]), ptr, column)
    return {"contract_rows_": rows, "contract_": side_by_side}


CASES = Cases(
    "contract",
    calls,
    shapes=[(5, 63, (4, 0, 19), 1), (1, 1, (1,), 0)],
    torch={(F64, F64): 1e-14, (F32, F32): 1e-6},
    triton={(F64, F64): 1e-14, (F32, F32): 1e-6, (F32, BF16): 1e-6, (BF16, BF16): 1e-6},
    compiled=[
        ((F32, BF16), (128, 2304, (20, 44), 0)),
        ((BF16, BF16), (128, 2304, (20, 44), 0)),
        ((F32, F32), (128, 576, (20, 44), 0)),
        ((F64, F64), (128, 63, (20, 44), 0)),
    ],
)
