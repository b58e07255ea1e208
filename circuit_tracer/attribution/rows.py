"""Finished edge rows, kept until the graph is assembled; influence flows through them from the top layer down.

A row is dense over the columns it can reach (features of positions up to its own) and stored once. Influence enters with the
targets' weights and passes through |edge| / row mass (README.md §6.1). Rows of features at one layer are final once all
layers above are, so one pass from the top gives exact influences.

Letters: T rows, C columns, L layers, P positions, N active features, K targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.attribution.sweep import EdgeBlock
from circuit_tracer.graph.influence import MIN_MASS

_PIECE = 1 << 18  # edges whose absolute values stay in cache until they are summed


@dataclass(frozen=True)
class StoredBlock:
    """A block of rows with their sums. `row` numbers rows globally: targets 0..K-1, then K + column of a feature."""

    row: Tensor  # (T,)
    edges: EdgeBlock
    total: Tensor  # (T,) signed sum over all sources, float64
    mass: Tensor  # (T,) sum of |edges| over all sources, float64
    layer_ptr: list[
        int
    ]  # (L + 2,) rows of layer l are layer_ptr[l + 1] .. layer_ptr[l], since rows are sorted top first


class RowStore:
    """All rows computed so far, each exactly once, whatever the order in which they were asked for."""

    def __init__(self, n_layers: int, n_targets: int, column_layer: Tensor) -> None:
        self.n_layers, self.n_targets = n_layers, n_targets
        self.column_layer = column_layer  # (N,)
        self.n_columns = int(column_layer.shape[0])
        self.blocks: list[StoredBlock] = []
        self.expanded = torch.zeros(self.n_columns, dtype=torch.bool)  # features, by column
        # columns of each layer, to decide a layer at a time
        self._of_layer = [torch.nonzero(column_layer == layer).flatten() for layer in range(n_layers)]

    def add(self, edges: EdgeBlock, row: Tensor) -> None:
        """Keep a block; `row` (T,) numbers its rows globally."""
        parts = [edges.feature, edges.error.flatten(1), edges.token]
        # sums over thousands of edges of both signs must not cost the digits that the sum rule checks; MPS has no float64
        wide = torch.float32 if edges.token.device.type == "mps" else torch.float64
        total = torch.stack([part.sum(1, dtype=wide) for part in parts]).sum(0)
        mass = torch.stack([part.abs().sum(1, dtype=wide) for part in parts]).sum(0)
        ptr = [int((edges.layer >= layer).sum()) for layer in range(self.n_layers + 2)]
        self.blocks.append(StoredBlock(row, edges, total, mass, ptr))
        features = row[row >= self.n_targets] - self.n_targets
        self.expanded[features] = True

    def influence(self, weight_K: Tensor, threshold: float | None = None) -> tuple[Tensor, Tensor]:
        """Influence (N,) of every feature column, and which columns are selected (N,).

        With a threshold, only features whose own influence reaches it pass influence on; they are the selected ones. A
        selected feature whose row is missing passes nothing on. Without a threshold every computed row passes on.
        """
        influence = torch.zeros(self.n_columns, dtype=torch.float64)
        selected = self.expanded.clone() if threshold is None else torch.zeros(self.n_columns, dtype=torch.bool)
        entering = torch.zeros(self.n_targets + self.n_columns, dtype=torch.float64)
        entering[: self.n_targets] = weight_K.double().abs().cpu()
        for layer in reversed(range(-1, self.n_layers + 1)):
            if 0 <= layer < self.n_layers:
                columns = self._of_layer[layer]
                if threshold is not None:
                    selected[columns] = influence[columns] >= threshold
                entering[self.n_targets + columns] = influence[columns] * selected[columns]
            if layer >= 0:
                self._flow(layer, entering, influence)
        return influence, selected

    def _flow(self, layer: int, entering: Tensor, influence: Tensor) -> None:
        for block in self.blocks:
            start, stop = block.layer_ptr[layer + 1], block.layer_ptr[layer]
            if start == stop:
                continue
            share = entering[block.row[start:stop]] / block.mass[start:stop].cpu().clamp_min(MIN_MASS)
            chosen = torch.nonzero(share).flatten()
            if len(chosen) == 0:
                continue
            rows = block.edges.feature[start:stop]
            for piece in chosen.split(max(1, _PIECE // max(1, rows.shape[1]))):
                weight = share[piece].to(device=rows.device, dtype=rows.dtype)
                flow = weight @ rows[piece.to(rows.device)].abs()
                influence[: flow.shape[0]] += flow.double().cpu()
