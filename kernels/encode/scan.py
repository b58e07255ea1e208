"""`encode` at the speed of bfloat16 with the result of float32: scan coarsely, decide exactly (README.md, "Scan").

A CPU with bfloat16 products runs them several times faster than float32 ones. The coarse pre-activation is off by at most
``margin * |x| * |w|``, so everything that could be above its cut is among the candidates above cut - margin * |x| * |w|;
only these, a fraction of a percent, are computed in float32.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from circuit_tracer.kernels.csr import csr
from circuit_tracer.kernels.sparse_activations import SparseActivations, pointers

# bfloat16 rounds to 8 bits: |x~ - x| <= 2^-8 |x|, likewise w, so a product of vectors is off by at most
# (2 * 2^-8 + 2^-16) |x| |w| (Cauchy-Schwarz). The rest covers float32 accumulation over D <= 2^15 terms.
MARGIN = 2**-7 + 2**-9
ROUNDING = 2**-8  # of the coarse result itself, which is bfloat16
BLOCK_ROWS = 256
MAX_CANDIDATES = 0.05  # of all; with more, computing candidates again costs what the scan saves


def scan(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, cut_F: Tensor) -> SparseActivations | None:
    """What `encode` returns, or None where the scan does not apply or does not pay."""
    if not _applies(x_BD, weight_FD):
        return None
    n_rows, n_features = x_BD.shape[0], weight_FD.shape[0]
    coarse_FD = weight_FD.bfloat16()
    norm_F = torch.linalg.vector_norm(weight_FD, dim=1, dtype=torch.float32)
    norm_B, order_B = torch.linalg.vector_norm(x_BD, dim=1).sort(
        descending=True
    )  # blocks of like norms have tight margins
    if not bool(norm_B.isfinite().all() & norm_F.isfinite().all()):
        return None  # there is no margin to speak of
    needed_F = cut_F.float() - bias_F.float()
    found_rows, found_features = [], []
    room = MAX_CANDIDATES * n_rows * n_features
    # largest norms first: they have most candidates, so a scan that will not pay ends early
    for rows, norms in zip(order_B.split(BLOCK_ROWS), norm_B.split(BLOCK_ROWS), strict=True):
        largest = norms[0]
        level_F = needed_F - MARGIN * largest * norm_F
        # what is above the level before rounding to bfloat16 is above its lower neighbour after
        level_F = (level_F - ROUNDING * level_F.abs()).bfloat16()
        level_F = torch.where(needed_F.isfinite(), torch.nextafter(level_F, level_F.new_tensor(-torch.inf)), level_F)
        coarse_BF = torch.mm(x_BD[rows].bfloat16(), coarse_FD.T)
        place = (coarse_BF >= level_F).flatten().nonzero()[:, 0]
        room -= place.shape[0]
        if room < 0:
            return None
        row = torch.div(place, n_features, rounding_mode="floor")
        found_rows.append(rows[row])
        found_features.append(place - row * n_features)
    candidates = _in_row_order(torch.cat(found_rows), torch.cat(found_features), n_rows, n_features)
    value = _exact(candidates, x_BD, weight_FD, bias_F)
    return candidates.with_value(value).keep(value > cut_F[candidates.feature])


def _in_row_order(row: Tensor, feature: Tensor, n_rows: int, n_features: int) -> SparseActivations:
    """Entries whose rows are in any order but each in one piece, features ascending; their values are still to be made."""
    row_ptr = pointers(row, n_rows)
    first = torch.ones_like(row, dtype=torch.bool)
    first[1:] = row[1:] != row[:-1]
    begin = first.nonzero()[:, 0]
    piece = first.cumsum(0) - 1
    place = row_ptr[row] + torch.arange(len(row), device=row.device) - begin[piece]
    ordered = torch.empty_like(feature)
    ordered[place] = feature
    return SparseActivations(row_ptr, ordered, feature.new_empty(0, dtype=torch.float32), n_features)


def _exact(candidates: SparseActivations, x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor) -> Tensor:
    """Pre-activations (n,) of the candidates in float32."""
    shape = (candidates.n_rows, candidates.n_features)
    zeros = x_BD.new_zeros(candidates.feature.shape[0])
    dots = csr(candidates.row_ptr, candidates.feature, zeros, shape)
    products: Tensor = torch.sparse.sampled_addmm(dots, x_BD, weight_FD.float().T).values()
    return products + bias_F[candidates.feature].float()


def _applies(x_BD: Tensor, weight_FD: Tensor) -> bool:
    large = x_BD.shape[0] >= BLOCK_ROWS and weight_FD.shape[0] >= BLOCK_ROWS and weight_FD.shape[1] >= 64
    return large and x_BD.dtype is torch.float32 and x_BD.device.type == "cpu" and _has_bfloat16_products()


@lru_cache(maxsize=1)
def _has_bfloat16_products() -> bool:
    """Whether this CPU multiplies bfloat16 natively."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name))
