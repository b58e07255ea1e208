"""What a trace will need, decided before it starts: which rows stay in memory, and how many travel at once.

Letters: L layers, P positions, D d_model, N active features.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from circuit_tracer.errors import ResourceError

SHARE_FOR_DECODER_ROWS = 0.35
SHARE_FOR_EDGE_ROWS = 0.45
SHARE_IN_FLIGHT = 0.1
COPIES_IN_FLIGHT = 5  # a block of gradients, its projections, and their products


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a trace will take, and the choices that keep it inside what is free."""

    available: int
    decoder_rows: int  # all scaled decoder rows, if kept
    edge_rows: int  # all finished rows
    keep_decoder_rows: bool
    block_rows: int

    def __str__(self) -> str:
        kept = "kept in memory" if self.keep_decoder_rows else "read again for each block"
        return (
            f"{self.edge_rows / 1e9:.2f} GB of edge rows, {self.decoder_rows / 1e9:.2f} GB of decoder rows {kept}, "
            f"{self.block_rows} rows in flight, {self.available / 1e9:.1f} GB free"
        )


def plan_memory(
    n_rows: int,
    n_features: int,
    n_writes: int,
    n_layers: int,
    n_pos: int,
    d_model: int,
    item: int,
    batch_size: int,
    device: torch.device,
) -> MemoryPlan:
    """Plan for `n_rows` rows over `n_features` active features that write `n_writes` decoder rows; `item` bytes a number.

    Raises ResourceError, with a number of feature nodes that fits, when the finished rows would not fit in memory.
    """
    available = free_bytes(device)
    per_row = item * (n_features // 2 + n_layers * n_pos + n_pos)  # rows end at their own position: half on average
    edge_rows, decoder_rows = n_rows * per_row, n_writes * d_model * item
    if edge_rows > SHARE_FOR_EDGE_ROWS * available:
        fits = int(SHARE_FOR_EDGE_ROWS * available / per_row)
        raise ResourceError(
            f"{n_rows} rows over {n_features} active features need {edge_rows / 1e9:.1f} GB, but only "
            f"{available / 1e9:.1f} GB are free; expand fewer features (max_feature_nodes={max(1, fits)} fits)"
        )
    in_flight = COPIES_IN_FLIGHT * n_pos * d_model * item + per_row
    return MemoryPlan(
        available=available,
        decoder_rows=decoder_rows,
        edge_rows=edge_rows,
        keep_decoder_rows=decoder_rows <= SHARE_FOR_DECODER_ROWS * available,
        block_rows=max(1, min(batch_size, int(SHARE_IN_FLIGHT * available / in_flight))),
    )


def free_bytes(device: torch.device) -> int:
    """Free memory where the trace runs."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
